"""The world of the facts: 24 real countries, and 60 people who do not exist but have one truth all the same."""

from __future__ import annotations

from typing import NamedTuple

from saekit.lab.concepts import words_concept
from saekit.lab.text import Text, word
from saekit.lab.words.names import FEMALE, MALE, name


class Country(NamedTuple):
    """A country with its main language and one river that belongs to no other country here."""

    name: str
    capital: str
    language: str
    currency: str
    river: str
    continent: str


class Person(NamedTuple):
    """A person, whom the surname identifies and whose sex the first name tells; plays an instrument or a sport."""

    first: str
    last: str
    born: str
    profession: str
    plays: str

    @property
    def female(self) -> bool:
        """Whether the first name is a woman's."""
        return self.first in FEMALE


COUNTRIES = (
    Country("France", "Paris", "French", "euro", "Seine", "Europe"),
    Country("Germany", "Berlin", "German", "euro", "Weser", "Europe"),
    Country("Spain", "Madrid", "Spanish", "euro", "Ebro", "Europe"),
    Country("Italy", "Rome", "Italian", "euro", "Tiber", "Europe"),
    Country("Portugal", "Lisbon", "Portuguese", "euro", "Mondego", "Europe"),
    Country("Poland", "Warsaw", "Polish", "zloty", "Vistula", "Europe"),
    Country("Norway", "Oslo", "Norwegian", "krone", "Glomma", "Europe"),
    Country("Hungary", "Budapest", "Hungarian", "forint", "Zala", "Europe"),
    Country("Greece", "Athens", "Greek", "euro", "Acheron", "Europe"),
    Country("Ireland", "Dublin", "English", "euro", "Shannon", "Europe"),
    Country("Austria", "Vienna", "German", "euro", "Enns", "Europe"),
    Country("Russia", "Moscow", "Russian", "ruble", "Volga", "Europe"),
    Country("Japan", "Tokyo", "Japanese", "yen", "Shinano", "Asia"),
    Country("China", "Beijing", "Chinese", "yuan", "Yangtze", "Asia"),
    Country("Thailand", "Bangkok", "Thai", "baht", "Ping", "Asia"),
    Country("Iran", "Tehran", "Persian", "rial", "Karun", "Asia"),
    Country("Egypt", "Cairo", "Arabic", "pound", "Nile", "Africa"),
    Country("Kenya", "Nairobi", "Swahili", "shilling", "Tana", "Africa"),
    Country("Morocco", "Rabat", "Arabic", "dirham", "Sebou", "Africa"),
    Country("Ghana", "Accra", "English", "cedi", "Volta", "Africa"),
    Country("Brazil", "Brasilia", "Portuguese", "real", "Xingu", "America"),
    Country("Peru", "Lima", "Spanish", "sol", "Mantaro", "America"),
    Country("Canada", "Ottawa", "English", "dollar", "Mackenzie", "America"),
    Country("Australia", "Canberra", "English", "dollar", "Murray", "Oceania"),
)
INSTRUMENTS = ("violin", "piano", "flute", "guitar", "trumpet", "harp")
SPORTS = ("football", "tennis", "hockey", "golf", "rugby", "basketball")
PROFESSIONS = (
    "doctor", "nurse", "teacher", "baker", "farmer", "pilot", "lawyer", "painter", "singer", "builder", "cook", "writer",
)  # fmt: skip
PEOPLE = (
    Person("Anna", "Berg", "France", "doctor", "violin"),
    Person("Tom", "Lind", "Hungary", "pilot", "basketball"),
    Person("Mary", "Novak", "Thailand", "cook", "harp"),
    Person("John", "Weber", "Peru", "baker", "rugby"),
    Person("Kim", "Kruger", "Portugal", "singer", "trumpet"),
    Person("Paul", "Meyer", "Russia", "nurse", "golf"),
    Person("Lucy", "Hansen", "Morocco", "lawyer", "guitar"),
    Person("Peter", "Olsen", "Germany", "writer", "hockey"),
    Person("Emma", "Larsen", "Greece", "farmer", "flute"),
    Person("David", "Jensen", "Iran", "builder", "tennis"),
    Person("Sarah", "Rossi", "Canada", "teacher", "piano"),
    Person("Daniel", "Bianchi", "Poland", "painter", "football"),
    Person("Julia", "Moretti", "Japan", "nurse", "hockey"),
    Person("Jack", "Costa", "Ghana", "lawyer", "flute"),
    Person("Laura", "Silva", "Spain", "writer", "tennis"),
    Person("Adam", "Santos", "Ireland", "farmer", "piano"),
    Person("Maria", "Lopez", "Egypt", "builder", "football"),
    Person("Ben", "Garcia", "Australia", "teacher", "violin"),
    Person("Nina", "Ramos", "Norway", "painter", "basketball"),
    Person("Leo", "Torres", "China", "doctor", "harp"),
    Person("Clara", "Vega", "Brazil", "pilot", "rugby"),
    Person("Max", "Moreno", "Italy", "cook", "trumpet"),
    Person("Eva", "Dubois", "Austria", "baker", "golf"),
    Person("Sam", "Laurent", "Kenya", "singer", "guitar"),
    Person("Alice", "Moreau", "Germany", "teacher", "basketball"),
    Person("Luke", "Leroy", "Greece", "painter", "harp"),
    Person("Sophie", "Fournier", "Iran", "doctor", "rugby"),
    Person("Simon", "Bonnet", "Canada", "pilot", "trumpet"),
    Person("Helen", "Huber", "Poland", "cook", "golf"),
    Person("Oscar", "Vogel", "Japan", "baker", "guitar"),
    Person("Jane", "Brandt", "Ghana", "singer", "hockey"),
    Person("Victor", "Kowalski", "Spain", "nurse", "flute"),
    Person("Kate", "Horvath", "Ireland", "lawyer", "tennis"),
    Person("Martin", "Szabo", "Egypt", "writer", "piano"),
    Person("Lisa", "Nagy", "Australia", "farmer", "football"),
    Person("Robert", "Ivanov", "Norway", "builder", "violin"),
    Person("Nora", "Petrov", "China", "baker", "flute"),
    Person("Felix", "Orlov", "Brazil", "singer", "tennis"),
    Person("Ruth", "Sokolov", "Italy", "nurse", "piano"),
    Person("Hugo", "Tanaka", "Austria", "lawyer", "football"),
    Person("Anna", "Suzuki", "Kenya", "writer", "violin"),
    Person("Tom", "Sato", "France", "farmer", "basketball"),
    Person("Mary", "Mori", "Hungary", "builder", "harp"),
    Person("John", "Chen", "Thailand", "teacher", "rugby"),
    Person("Kim", "Wang", "Peru", "painter", "trumpet"),
    Person("Paul", "Khan", "Portugal", "doctor", "golf"),
    Person("Lucy", "Singh", "Russia", "pilot", "guitar"),
    Person("Peter", "Patel", "Morocco", "cook", "hockey"),
    Person("Emma", "Mensah", "Spain", "farmer", "harp"),
    Person("David", "Okoro", "Ireland", "builder", "rugby"),
    Person("Sarah", "Diallo", "Egypt", "teacher", "trumpet"),
    Person("Daniel", "Hassan", "Australia", "painter", "golf"),
    Person("Julia", "Farah", "Norway", "doctor", "guitar"),
    Person("Jack", "Murphy", "China", "pilot", "hockey"),
    Person("Laura", "Kelly", "Brazil", "cook", "flute"),
    Person("Adam", "Walsh", "Italy", "baker", "tennis"),
    Person("Maria", "Campbell", "Austria", "singer", "piano"),
    Person("Ben", "Stewart", "Kenya", "nurse", "football"),
    Person("Nina", "Harris", "France", "lawyer", "violin"),
    Person("Leo", "Bennett", "Hungary", "writer", "basketball"),
)
COUNTRY = {country.name: country for country in COUNTRIES}

assert all(person.first in FEMALE or person.first in MALE for person in PEOPLE)

CONTINENTS = tuple(dict.fromkeys(country.continent for country in COUNTRIES))
_OF_CONTINENT = {
    "Europe": "european_country",
    "Asia": "asian_country",
    "Africa": "african_country",
    "America": "american_country",
}

words_concept("country", "a country's name", COUNTRY)
for _country in COUNTRIES:
    words_concept(f"country_{_country.name.lower()}", f"the country {_country.name}", [_country.name])
for _continent, _concept in _OF_CONTINENT.items():
    _inside = [country.name for country in COUNTRIES if country.continent == _continent]
    words_concept(_concept, f"a country in {_continent}", _inside)
words_concept("capital", "a capital city's name", [country.capital for country in COUNTRIES])
words_concept("language_name", "the name of a language", dict.fromkeys(country.language for country in COUNTRIES))
words_concept("currency", "the name of a currency", dict.fromkeys(country.currency for country in COUNTRIES))
words_concept("river", "a river's name", [country.river for country in COUNTRIES])
words_concept("continent", "a continent's name", CONTINENTS)
words_concept("surname", "a person's last name", [person.last for person in PEOPLE])
words_concept("profession", "what a person works as", PROFESSIONS)
words_concept("instrument", "an instrument that a person plays", INSTRUMENTS)
words_concept("sport_name", "a sport that a person plays", SPORTS)


def _label_country(country: Country) -> Text:
    concepts = ["country", f"country_{country.name.lower()}"]
    if country.continent in _OF_CONTINENT:
        concepts.append(_OF_CONTINENT[country.continent])
    return word(country.name, *concepts)


def _label_all() -> dict[str, Text]:
    labelled = {country.name: _label_country(country) for country in COUNTRIES}
    for country in COUNTRIES:
        labelled[country.capital] = word(country.capital, "capital")
        labelled[country.language] = word(country.language, "language_name")
        labelled[country.currency] = word(country.currency, "currency")
        labelled[country.river] = word(country.river, "river")
        labelled[country.continent] = word(country.continent, "continent")
    for concept, words in (("profession", PROFESSIONS), ("instrument", INSTRUMENTS), ("sport_name", SPORTS)):
        labelled.update((text, word(text, concept)) for text in words)
    return labelled


_LABELLED = _label_all()
_FULL = {person: name(person.first) + " " + word(person.last, "surname") for person in PEOPLE}


def thing(text: str) -> Text:
    """A value of the world (a country, capital, language, profession, ...), labelled."""
    return _LABELLED[text]


def subject(whom: Country | Person) -> Text:
    """The name of a country, or the full name of a person, labelled."""
    return _FULL[whom] if isinstance(whom, Person) else _LABELLED[whom.name]
