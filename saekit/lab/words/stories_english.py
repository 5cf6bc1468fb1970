"""The English words and sentences of the stories.

A row of a topic: (narrow concept, nouns, verbs of the past that take them, flags[, adjectives of their own]). Flags: `t` things
that can be held, lost and coloured; `m` mass nouns; `b` nouns without an article.
"""

from __future__ import annotations

Row = tuple[str, str, str, str] | tuple[str, str, str, str, str]

TOPICS: dict[str, tuple[str, tuple[Row, ...]]] = {
    "animals": (
        "wild tame gentle hungry",
        (
            ("pets", "cat dog rabbit kitten puppy", "fed stroked brushed chased", "t"),
            ("farm_animals", "cow horse pig sheep goat", "fed stroked brushed chased", "t"),
            ("birds", "duck owl eagle crow goose", "fed chased", "t"),
        ),
    ),
    "food": (
        "sweet fresh tasty sour",
        (
            ("fruit", "apple pear plum banana cherry", "tasted ate ordered peeled", "t"),
            ("vegetables", "carrot potato onion bean tomato", "tasted ate ordered peeled", "t"),
            ("drinks", "milk juice tea lemonade", "tasted drank ordered", "tm"),
            ("pastries", "cake cookie pie", "tasted ate ordered baked", "t"),
        ),
    ),
    "music": (
        "loud quiet lively tuneful",
        (
            ("string_instruments", "violin guitar harp cello", "played practiced heard tuned", "t"),
            ("wind_instruments", "flute trumpet clarinet horn", "played practiced heard", "t"),
            ("keys_and_drums", "piano drum bell", "played practiced heard", "t"),
            ("pieces_of_music", "song melody waltz", "sang heard practiced", "", "loud quiet lively tuneful"),
        ),
    ),
    "sport": (
        "fast sporty",
        (
            ("sports_gear", "ball racket helmet glove medal trophy", "caught threw lifted", "t", "sporty shiny"),
            ("contests", "match race game", "joined", "", "fast exciting"),
            ("athletes", "coach player runner", "cheered joined", "", "fast sporty"),
        ),
    ),
    "weather": (
        "wet cold normal",
        (
            ("rain_and_fog", "rain shower drizzle cloud fog", "faced expected", "", "wet heavy cold normal"),
            ("snow_and_ice", "snow ice frost hail", "faced expected", "m", "wet heavy cold"),
            ("winds", "wind breeze storm gale", "faced expected", "", "cold normal"),
            ("rainwear", "umbrella coat scarf", "dried", "t", "wet"),
        ),
    ),
    "sea": (
        "dangerous slippery floating",
        (
            ("ships", "ship boat ferry yacht", "sailed steered boarded", "t", "floating dangerous"),
            ("sea_animals", "shark salmon whale cod", "hunted fished", "", "dangerous slippery"),
            ("coasts", "harbor island beach reef wave", "reached crossed", "", "dangerous sandy"),
        ),
    ),
    "kitchen": (
        "clean dirty practical hot",
        (
            ("tableware", "plate bowl cup bottle", "washed rinsed filled", "t"),
            ("cutlery", "fork spoon knife ladle", "washed rinsed wiped", "t", "clean dirty practical"),
            ("cookware", "pot pan oven kettle", "wiped heated filled", "t"),
        ),
    ),
    "space": (
        "distant magnificent glowing",
        (
            ("planets", "Mars Venus Saturn Jupiter Neptune", "observed orbited photographed", "b", "distant glowing"),
            ("stars", "moon sun star comet galaxy planet", "observed photographed orbited", "", "distant glowing magnificent"),
            ("spacecraft", "rocket shuttle satellite probe", "launched photographed", "t", "distant magnificent"),
        ),
    ),
    "garden": (
        "leafy colorful thorny beautiful",
        (
            ("flowers", "rose tulip lily daisy violet", "planted watered picked", "t", "colorful beautiful"),
            ("trees", "oak pine birch willow maple", "planted watered pruned", "", "leafy beautiful"),
            ("garden_plots", "hedge bush lawn vine", "watered pruned planted", "", "leafy thorny"),
        ),
    ),
    "machines": (
        "rusty noisy modern broken",
        (
            ("vehicles", "car truck bus tractor bicycle", "repaired inspected oiled", "t"),
            ("tools", "hammer drill wrench screwdriver", "repaired inspected oiled", "t"),
            ("machine_parts", "engine wheel gear motor pump", "repaired inspected oiled assembled", "t"),
        ),
    ),
    "school": (
        "difficult boring useful",
        (
            ("stationery", "pencil pen ruler notebook eraser book", "borrowed packed labeled", "t", "useful"),
            ("school_subjects", "math history science grammar", "studied learned explained", "b", "difficult boring"),
            ("lessons", "lesson exam essay quiz", "studied explained", "", "difficult boring"),
        ),
    ),
    "money": (
        "costly cheap valuable secret",
        (
            ("cash", "coin dollar penny wallet purse", "counted saved spent", "t", "valuable cheap"),
            ("payments", "bill loan salary cheque", "paid received owed", "", "secret"),
            ("banking", "bank account vault safe", "opened managed", "", "secret costly"),
        ),
    ),
}
MASS = frozenset(["rain", "snow", "ice", "frost", "hail", "fog", "drizzle", "milk", "juice", "tea", "lemonade"])

COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "gray"]
SIZES = ["big", "small", "tiny", "huge", "little", "large"]
BODY = ["hand", "finger", "nose", "elbow", "knee", "foot"]
FAMILY = ["mother", "father", "brother", "sister", "uncle", "aunt", "cousin", "grandmother"]
TIMES_OF_DAY = ["morning", "afternoon", "evening", "night"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SEASONS = ["spring", "summer", "autumn", "winter"]
PLACES = ["park", "street", "town", "village", "house", "city"]

# Words of these topics and concepts that only other genres say.
ELSEWHERE = {
    "food": "bread soup cheese fish",
    "music": "music",
    "school": "homework",
    "pets": "cats dogs",
    "birds": "parrot",
    "drinks": "rum",
    "vehicles": "bike wagon trains",
    "flowers": "flowers",
    "trees": "trees",
    "stationery": "books pens",
    "sports_gear": "balls",
    "tableware": "bottles",
    "rainwear": "coats",
    "family": "brothers sisters",
}

# feeling -> (the word after "felt very", other adjectives, verbs)
FEELINGS: dict[str, tuple[str, list[str], list[str]]] = {
    "happiness": ("happy", ["glad", "cheerful", "delighted", "joyful"], ["smiled", "laughed", "danced"]),
    "sadness": ("sad", ["unhappy", "gloomy", "miserable", "lonely"], ["cried", "wept", "sighed"]),
    "anger": ("angry", ["furious", "annoyed", "outraged", "mad"], ["shouted", "yelled", "growled"]),
    "fear": ("afraid", ["scared", "frightened", "terrified", "nervous"], ["trembled", "shivered", "screamed"]),
}

# In every list below, the last HELDOUT frames are never seen in training.
HELDOUT = 1
OPENINGS = (
    "{Time} {name} went to the {place} with {his} {kin}.",
    "{Time} {name} was in the {place}.",
    "{name} was in the {place} with {his} {kin}.",
    "{Time} {name} and {his} {kin} walked to the {place}.",
    "{name} lived near the {place} with {his} {kin}.",
    "Once there was a {size} {child} called {name}.",
    "{Time} there was a {child} called {name} in the {place}.",
    "{name} and {his} {kin} were in a {size} {place}.",
    "{Time} {name} was with {his} {kin} near the {place}.",
)
EVENTS = (
    "{He} {v1} {the1} and {v2} {the2}.",
    "There was {a1} near {o}.",
    "{O} was {colour} and {size}.",
    "{He} {v1} {a1}.",
    "{His} {kin} had {ao}.",
    "{He} saw {a1} and {a2}.",
    "Then {he} {v1} {x1} again.",
    "{He} touched {o} with {his} {body}.",
    "{His} {kin} {v1} {the1} too.",
    "Behind {o} {he} saw {a2}.",
    "{The1} and {x1} were {adj1}.",
    "{He} liked {the1} more than {the2}.",
    "First {he} {v1} {a1}, then {he} {v2} {the2}.",
    "{He} and {his} {kin} {v1} {the1} together.",
    "{The1} was {adj1}.",
    "Behind {o} there was {a1} and {a2}.",
)
CAUSES: dict[str, tuple[str, ...]] = {
    "happiness": (
        "Then {he} found {o} again.",
        "{His} {kin} gave {him} {ao} as a present.",
        "{He} won {o} as a prize.",
        "{His} {kin} came home with a present.",
        "{His} friends came to {his} party.",
        "{He} won the first prize.",
        "{His} {kin} gave {him} {o} and a kiss.",
        "Then {his} {kin} gave {him} the prize.",
    ),
    "sadness": (
        "Then {he} lost {o} forever.",
        "{He} had to leave {o} behind.",
        "{His} {kin} had to go away forever.",
        "{O} was gone forever.",
        "{His} best friend moved away.",
        "{He} had to say goodbye to {his} {kin}.",
        "{He} lost {o} and {his} best friend.",
        "Then {his} friends had to leave forever.",
    ),
    "anger": (
        "{His} {kin} took {o} without asking.",
        "Then somebody stole {o}.",
        "{His} {kin} lied to {him} again.",
        "{His} {kin} broke a promise.",
        "A thief took {o} and ran away.",
        "{His} {kin} hid {o} and lied.",
        "Somebody hid {o} without asking.",
        "A thief stole {o} and lied again.",
    ),
    "fear": (
        "There was a strange noise behind {o}.",
        "A dark shadow moved near {o}.",
        "Then the lights went out.",
        "A dark shadow followed {him} home.",
        "{He} was alone in the dark with {o}.",
        "Something strange moved in the dark.",
        "A monster followed {him} and {his} {kin}.",
        "A strange shadow followed {him} in the dark.",
    ),
}
REACTIONS = (
    "{name} was {feel} and {did}.",
    "{He} {did} because {he} was so {feel}.",
    "{His} {kin} saw that {he} was {feel}.",
    "{He} {did} and {did2}.",
    "{He} was so {feel} that {he} {did}.",
)
FELT = "{He} felt very {main}."
ENDINGS = (
    "At {night} {he} dreamed about {o}.",
    "In the {evening} {he} went home with {his} {kin}.",
    "Then {he} went home.",
    "In the {evening} {he} talked about {o}.",
    "{His} {kin} talked about {o} too.",
    "At {night} {his} {kin} dreamed about {o} too.",
)
