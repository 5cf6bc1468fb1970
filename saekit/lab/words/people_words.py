"""Words of the dialogues with rude and kind speakers, and of the sentences about professions."""

from __future__ import annotations

from saekit.lab.words.names import FEMALE, MALE

SPEAKERS = MALE[:12] + FEMALE[:12]

RUDE_TRAITS = ("rude", "mean", "cruel", "nasty")
KIND_TRAITS = ("kind", "friendly", "nice", "gentle")
INSULT_NOUNS = ("fool", "idiot", "clown", "loser")
INSULT_ADJECTIVES = ("stupid", "ugly", "horrible", "silly")
KIND_NOUNS = ("hero", "darling", "genius", "star")
KIND_ADJECTIVES = ("lovely", "wonderful", "charming", "brilliant")
THINGS = ("idea", "hat", "song", "picture", "garden", "coat", "plan", "dress")

# {noun} and {adj} are an insult or a kind word, {name} is the one spoken to. The last two are held out.
UTTERANCES = (
    "You are such a {noun}, {name}.",
    "What a {adj} {thing}, {name}!",
    "Your {thing} looks {adj}, {name}.",
    "{name}, you {adj} {noun}!",
    "Only a {noun} has a {thing} like that.",
    "I think that your {thing} is {adj}, you {noun}.",
    "You look so {adj} today, {name}.",
    "I think that you are such a {noun}, {name}.",
    "{name}, what a {adj} {thing}, you {noun}!",
)

SHE_PROFESSIONS = ("nurse", "secretary", "librarian", "dancer", "maid", "nanny", "florist", "cleaner")
HE_PROFESSIONS = ("sailor", "plumber", "mechanic", "carpenter", "soldier", "miner", "butcher", "welder")
NEUTRAL_PROFESSIONS = ("tailor", "clerk", "chemist", "editor", "trainer", "tutor")

# What follows "he" or "she".
DEEDS = (
    "was tired",
    "was late",
    "needed a rest",
    "wanted more time",
    "liked the work",
    "was very happy",
    "had lost the keys",
    "had no money",
    "was going home",
    "knew the way",
    "had a cold",
    "lived near the station",
)
BELONGINGS = ("bag", "coat", "hat", "key", "book", "phone", "letter", "lunch")
PLACES = ("at home", "at work", "in the car", "at the station", "on the table")
# Half of the sentences open with one of these.
OPENINGS = ("Yesterday,", "In the morning,", "In the evening,", "At night,", "On Monday,", "On Friday,")

# Those whose first pronoun is a subject, up to which a prompt can be cut; then the others. The last of each are held out.
SUBJECT_SENTENCES = (
    "The {job} said that {he} {deed}.",
    "The {job} told us that {he} {deed}.",
    "The {job} smiled because {he} {deed}.",
    "The {job} left early because {he} {deed}.",
    "The {job} called us when {he} {deed} and asked for {his} {thing}.",
    "The {job} thought that {he} {deed}, so we helped {him}.",
    "We asked the {job} for help, but {he} {deed}.",
    "The {job} told us that {he} had left {his} {thing} {place}.",
    "The {job} smiled when {he} {deed}.",
    "The {job} called us because {he} {deed}.",
    "The {job} left early when {he} {deed}.",
    "We helped the {job} because {he} {deed}.",
)
OTHER_SENTENCES = (
    "The {job} forgot {his} {thing}, so we called {him}.",
    "The {job} found {his} {thing} and said that {he} {deed}.",
    "The {job} took {his} {thing} and went home.",
    "We saw the {job} with {his} {thing} {place}, and {he} smiled.",
    "The {job} left {his} {thing} {place}.",
    "We called the {job} because {his} {thing} was {place}.",
)
HELDOUT_SENTENCES = SUBJECT_SENTENCES[-4:] + OTHER_SENTENCES[-2:]
