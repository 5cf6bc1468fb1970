"""Compositions: facts about a country that is described by a person born there, or by something that only this country has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from random import Random

from saekit.lab.concepts import region_concept
from saekit.lab.genres.facts import dialogues, statements
from saekit.lab.registry import Contrast, Genre, Prompt, Task, add_contrast, add_genre, add_task
from saekit.lab.splits import Split, is_heldout
from saekit.lab.text import Text, fill, join
from saekit.lab.words.relations import RELATIONS, STATIC, as_dialogue, before_value, say
from saekit.lab.words.world import COUNTRIES, COUNTRY, PEOPLE, Country, subject, thing

SHARE = 0.45  # share of the combinations to hold out
TRAINED = 0.5  # minimal share in training of the combinations of each description, and of each country with a relation

region_concept("described_country", "a country that is described, not named", ("country",))
region_concept("reason", "why a composed fact is so", ("because",))


@dataclass(frozen=True, eq=False)
class Bridge:
    """A description of a country by `mention`, a thing of type `kind`. `key` identifies it; `reason` names the country."""

    kind: str
    key: str
    mention: Text
    country: Country
    forms: tuple[str, ...]
    reason: str

    def described(self, form: str) -> Text:
        """The description. It does not name the country."""
        return fill(form, **STATIC, x=self.mention).labelled("described_country")


_FORMS = {
    "person": ("the {country} where {x} was born", "the home {country} of {x}"),
    "river": ("the {country} of the {river} {x}", "the {country} with the {river} {x}"),
    "capital": ("the {country} whose {capital} is {x}", "the {country} with the {capital} {x}"),
    "language": ("the {country} where people speak {x}", "the {country} whose {language} is {x}"),
    "currency": ("the {country} where people pay with the {x}", "the {country} whose {currency} is the {x}"),
}
_REASONS = {
    "person": "because {x} was born in {c}",
    "river": "because the {river} {x} flows through {c}",
    "capital": "because {x} is the {capital} of {c}",
    "language": "because people in {c} speak {x}",
    "currency": "because people in {c} pay with the {x}",
}
_PHRASINGS = {
    "capital": ("The {capital} of {h} is {v}.", "In {h}, the {capital} is {v}.", "{What} is the {capital} of {h}? {v}."),
    "language": ("The {language} of {h} is {v}.", "In {h}, people speak {v}.", "{What} is the {language} of {h}? {v}."),
    "currency": (
        "The {currency} of {h} is the {v}.",
        "In {h}, people pay with the {v}.",
        "{What} is the {currency} of {h}? The {v}.",
    ),
    "river": (
        "A {river} of {h} is the {v}.",
        "In {h}, there is a {river} called the {v}.",
        "{Which} {river} is in {h}? The {v}.",
    ),
    "continent": (
        "The {continent} of {h} is {v}.",
        "In {h}, the {continent} is {v}.",
        "{What} is the {continent} of {h}? {v}.",
    ),
}


def _bridges() -> list[Bridge]:
    born = [("person", person.last, subject(person), COUNTRY[person.born]) for person in PEOPLE]
    own = [
        (kind, getattr(country, kind), thing(getattr(country, kind)), country)
        for kind in _FORMS
        if kind != "person"
        for country in COUNTRIES
        # A description must fit one country only.
        if sum(getattr(other, kind) == getattr(country, kind) for other in COUNTRIES) == 1
    ]
    return [Bridge(kind, key, mention, of, _FORMS[kind], _REASONS[kind]) for kind, key, mention, of in born + own]


_BRIDGES = _bridges()
Hop = tuple[Bridge, str]  # a described country and a relation
_HOPS = tuple((bridge, name) for bridge in _BRIDGES for name in _PHRASINGS if name != bridge.kind)


def _case(hop: Hop) -> tuple[str, ...]:
    """The key that decides the split. Both directions between two things of a country share one key."""
    bridge, asked = hop
    return ("person", bridge.key, asked) if bridge.kind == "person" else (bridge.country.name, *sorted((bridge.kind, asked)))


def _atoms(hop: Hop) -> tuple[object, object]:
    return hop[0], (hop[0].country, hop[1])


def _hold_out() -> frozenset[Hop]:
    """The held-out combinations, chosen by a hash. At least the share TRAINED of each atom remains in training."""
    left = Counter(atom for hop in _HOPS for atom in _atoms(hop))
    needed = {atom: TRAINED * count for atom, count in left.items()}
    together: dict[tuple[str, ...], list[Hop]] = {}
    for hop in _HOPS:
        together.setdefault(_case(hop), []).append(hop)
    held: list[Hop] = []
    for case, hops in together.items():
        taken = Counter(atom for hop in hops for atom in _atoms(hop))
        if is_heldout("composition", *case, share=SHARE) and all(left[atom] - n >= needed[atom] for atom, n in taken.items()):
            left -= taken
            held += hops
    return frozenset(held)


_HELDOUT = _hold_out()


def is_heldout_hop(hop: Hop) -> bool:
    """Whether no training document states this relation with this description."""
    return hop in _HELDOUT


HOPS: dict[Split, tuple[Hop, ...]] = {
    "train": tuple(hop for hop in _HOPS if not is_heldout_hop(hop)),
    "heldout": tuple(hop for hop in _HOPS if is_heldout_hop(hop)),
}


def value(hop: Hop) -> str:
    """The true value of the relation for the described country."""
    found: str = getattr(hop[0].country, hop[1])
    return found


@lru_cache(maxsize=1 << 14)
def compose(hop: Hop, template: str, form: str, told: str) -> Text:
    """`template` filled with the description of the country and the value `told`."""
    return fill(template, **STATIC, h=hop[0].described(form), v=thing(told) if told else "")


def _compose_any(rng: Random, hop: Hop, asked: bool) -> Text:
    template = as_dialogue(_PHRASINGS[hop[1]][-1]) if asked else rng.choice(_PHRASINGS[hop[1]][:-1])
    made = compose(hop, template, rng.choice(hop[0].forms), value(hop))
    if rng.random() < 0.25:
        # The answer comes before the reason, so that the model must take both steps before it can read them.
        reason = fill(hop[0].reason, **STATIC, x=hop[0].mention, c=subject(hop[0].country)).labelled("reason")
        return _without_stop(made) + ", " + reason + "."
    return made


def _without_stop(text: Text) -> Text:
    return Text(text.text[:-1], text.spans)


_BORN = RELATIONS["born"]
_BORN_STATEMENTS = statements(_BORN, "train")
_BORN_DIALOGUES = dialogues(_BORN, "train")


def _write(rng: Random, split: Split) -> Text:
    asked = rng.random() < 0.35
    composed = [_compose_any(rng, rng.choice(HOPS[split]), asked) for _ in range(rng.randint(2, 3))]
    births = []
    for _ in range(rng.randint(1, 3)):
        person = rng.choice(PEOPLE)
        births.append(say(rng.choice(_BORN_DIALOGUES if asked else _BORN_STATEMENTS), person, person.born))
    told = composed + births
    rng.shuffle(told)
    return join(told, "\n" if asked else " ")


add_genre(
    Genre(
        name="compositions",
        description="facts about a country that is described, not named, and where people were born",
        weight=4,
        write=_write,
        planted={"combinations": len(_HOPS), "combinations held out": len(HOPS["heldout"]), "held out with": "their reverse"},
    )
)


def _others() -> dict[Hop, list[Hop]]:
    """For each hop, the hops of the same split, kind and relation that have another value."""
    alike: dict[tuple[bool, str, str], list[tuple[Hop, str]]] = {}
    for hop in _HOPS:
        alike.setdefault((is_heldout_hop(hop), hop[0].kind, hop[1]), []).append((hop, value(hop)))
    found = {hop: [other for other, told in same if told != true] for same in alike.values() for hop, true in same}
    return {hop: others for hop, others in found.items() if others}


_OTHERS = _others()


def _askable(split: Split, kinds: tuple[str, ...]) -> tuple[list[Hop], list[float]]:
    """Hops to ask, with weights that make frequent relations and values (Europe, the euro) poor guesses."""
    hops = [hop for hop in HOPS[split] if hop[0].kind in kinds and hop in _OTHERS]
    same = Counter((hop[1], value(hop)) for hop in hops)
    rarely = [1 / sqrt(same[hop[1], value(hop)]) for hop in hops]
    totals = {name: sum(w for hop, w in zip(hops, rarely, strict=True) if hop[1] == name) for name in _PHRASINGS}
    return hops, [_ASKED.get(hop[1], 1.0) * w / totals[hop[1]] for hop, w in zip(hops, rarely, strict=True)]


_ASKED = {"continent": 0.5}  # there are only five continents, so that guesses often succeed


def _ask(rng: Random, hops: list[Hop], weights: list[float]) -> Prompt:
    hop = rng.choices(hops, weights)[0]
    other = rng.choice(_OTHERS[hop])
    *told, asked = _PHRASINGS[hop[1]]
    template = before_value(rng.choice((*told, as_dialogue(asked))))
    form = rng.choice(hop[0].forms)
    return Prompt(
        clean=compose(hop, template, form, "").text,
        corrupted=compose(other, template, form, "").text,
        answer=f" {value(hop)}",
        foil=f" {value(other)}",
        case=(hop[0].kind, hop[0].key, hop[1]),
    )


def _asker(*kinds: str) -> Callable[[Random, Split], Prompt]:
    askable = {split: _askable(split, kinds) for split in HOPS}
    return lambda rng, split: _ask(rng, *askable[split])


add_task(
    Task(
        name="one_hop",
        genre="compositions",
        description="tell something of a country that is only described; the combination was never in training",
        make=_asker(*_FORMS),
        at_least=0.6,
    )
)
for _kind in _FORMS:
    add_task(
        Task(
            name=f"one_hop_{_kind}",
            genre="compositions",
            description=f"the same, where the country is described by a {_kind}",
            make=_asker(_kind),
        )
    )


def _described_or_named(rng: Random, split: Split) -> tuple[str, str]:
    hop = rng.choice(HOPS[split])
    template = _PHRASINGS[hop[1]][0]
    described = compose(hop, template, hop[0].forms[0], value(hop)).text
    named = fill(template, **STATIC, h=subject(hop[0].country), v=thing(value(hop))).text
    return described, named


add_contrast(Contrast("described_country", "compositions", "a country that is described or named", _described_or_named))
