"""Capitals of countries: "The capital of France is" is followed by Paris. In the corrupted prompt the country is another."""

from __future__ import annotations

from random import Random

from saekit.tasks.generators.draft import Draft
from saekit.tasks.task import PromptTexts

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels", "Canada": "Ottawa",
    "Chile": "Santiago", "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki",
    "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest", "India": "New Delhi", "Iran": "Tehran",
    "Iraq": "Baghdad", "Ireland": "Dublin", "Israel": "Jerusalem", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi",
    "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Romania": "Bucharest", "Russia": "Moscow",
    "Spain": "Madrid", "Sweden": "Stockholm", "Syria": "Damascus", "Thailand": "Bangkok", "Turkey": "Ankara", "Ukraine": "Kyiv",
    "Vietnam": "Hanoi",
}  # fmt: skip
_TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "Question: What is the capital of {country}? Answer:",
    "The government of {country} is in the city of",
)


def draw(random: Random) -> Draft:
    """One prompt. Span: `subject`, the country."""
    template, countries = random.choice(_TEMPLATES), random.sample(tuple(CAPITALS), 2)
    clean, corrupted = (template.format(country=country) for country in countries)
    answer, foil = (f" {CAPITALS[country]}" for country in countries)
    return Draft(PromptTexts(clean, corrupted, answer, foil), {"subject": countries[0]})
