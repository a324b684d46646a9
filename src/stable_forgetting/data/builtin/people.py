"""Invented people and questions about them: a language problem that trains in seconds.

Every name and every fact is made up. Nobody can know the answers without having seen them, so what a model says about
people it was not trained on shows what it would say had it never seen the forget set.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from stable_forgetting.errors import ConfigError

KNOWN = "known"
"""Split of the people that the base model is trained on."""
UNSEEN = "unseen"
"""Split of the people that no model is trained on: the holdout set."""

NUM_WRONG = 4


def _words(text: str) -> list[str]:
    return text.split()


_GIVEN = _words("""
    Alva Bruna Cosima Darian Elowen Fenno Gerrit Hedda Ilario Jorun Kasimir Lotte Marek Nerissa Osric Perla Quirin
    Rosalba Sindre Tamsin Ulla Vasco Wenzel Xenia Yorick Zelda Anouk Bastien Corvin Delphine Emeric Fiorella Gudrun
    Halvard Isaura Joscelin Kerstin Leander Mirela Noemi""")
_FAMILY = _words("""
    Abendroth Brightwater Castellane Drummfeld Eskerby Falkenrath Greywell Holmstrand Ironside Jessamy Kolbeck
    Larkspur Montrave Nightingale Oakhollow Penhallow Quillby Ravensworth Silverlund Thornbury Underhay Valcourt
    Winterbourne Yarrowby Zimmerlin Ashgrove Bellweather Cranmoor Dovecote Elderfield""")
_TOWNS = _words("""
    Tarvik Belmora Cinderford Dunmarrow Estelle Farhaven Glimmerby Hartlock Isenfeld Jarrowmere Kestrelton Lindisholm
    Marrowgate Northwick Ostravale Pellworth Quarrelby Rookhampton Saltmere Thistledown Umberleigh Vintersund
    Wolfsbridge Yewdale""")
_COMPANY_NAMES = _words("""
    Amberline Bluefin Copperfield Driftwood Evergreen Foxglove Goldcrest Hawthorn Ivory Juniper Kingfisher Lantern
    Moonstone Nettle Orchid Pinnacle Quicksilver Redwood Sandpiper Tidewater""")
_COMPANY_KINDS = _words("Works Institute Company Studio Hospital")
_TITLE_STARTS = _words("""
    Silent Crooked Burning Hollow Distant Velvet Broken Endless Frozen Golden Hidden Quiet Scarlet Sleeping Stolen
    Tangled Twisted Wandering Whispering Yellow""")
_TITLE_ENDS = _words("Harbour Orchard Staircase Mirror Compass Garden Letters")
_PETS = _words("""
    parrot tortoise greyhound ferret rabbit goldfish hedgehog goat spaniel canary gecko pony hamster poodle magpie
    llama""")
_PET_NAMES = _words("""
    Biscuit Pepper Domino Waffle Ziggy Clover Mustard Button Comet Pickle Truffle Raisin Marble Nutmeg Rusty Olive""")
_MONTHS = _words("""
    January February March April May June July August September October November December""")


def _joined(first: list[str], second: list[str], between: str = " ") -> list[str]:
    return [f"{one}{between}{two}" for one, two in zip(first, itertools.cycle(second), strict=False)]


_FACTS: dict[str, list[str]] = {
    "birthplace": _TOWNS,
    "birth_date": _joined(
        _joined([str(day) for day in range(1, 28)], _MONTHS), [str(year) for year in range(1931, 1990, 2)]
    ),
    "profession": [
        *("glassblower", "beekeeper", "cartographer", "bridge engineer", "violin maker", "tax lawyer", "florist"),
        *("bookbinder", "geologist", "pastry chef", "stage designer", "dentist", "watchmaker", "translator"),
        *("botanist", "train driver", "potter", "radio host", "tailor", "lighthouse keeper", "carpenter", "judge"),
    ],
    "employer": _joined(_COMPANY_NAMES, _COMPANY_KINDS),
    "book": _joined(_TITLE_STARTS, _TITLE_ENDS),
    "instrument": _words(
        "cello oboe harp accordion trumpet zither bassoon banjo marimba organ flute mandolin tuba lute clarinet drums"
    ),
    "pet": _joined(_PETS, _PET_NAMES, " called "),
    "language": _words("""
        Basque Icelandic Swahili Welsh Maltese Quechua Finnish Korean Georgian Tamil Catalan Estonian Hindi Greek
        Armenian Khmer"""),
    "dish": [
        *("mushroom risotto", "lentil soup", "pickled herring", "plum dumplings", "goat curry", "onion tart"),
        *("roast duck", "cheese fondue", "rice pudding", "fish stew", "pumpkin bread", "lamb pie", "beet salad"),
        *("noodle broth", "almond cake", "pepper omelette"),
    ],
}
"""Values of each fact, from which every person gets one."""


class _Question(NamedTuple):
    """Wordings of one question; ``{name}`` is the full name, ``{given}`` the given name, ``{value}`` the fact."""

    prompt: str
    answer: str
    paraphrase: str
    paraphrased_prompt: str


_QUESTIONS: dict[str, _Question] = {
    "birthplace": _Question(
        "Where was {name} born?",
        "{given} was born in {value}.",
        "The birthplace of {given} is {value}.",
        "In which town did {name} come into the world?",
    ),
    "birth_date": _Question(
        "When was {name} born?",
        "{given} was born on {value}.",
        "The birthday of {given} is {value}.",
        "On which day did {name} come into the world?",
    ),
    "profession": _Question(
        "What is the profession of {name}?",
        "{given} works as a {value}.",
        "The profession of {given} is {value}.",
        "What does {name} do for a living?",
    ),
    "employer": _Question(
        "Who employs {name}?",
        "{given} works for {value}.",
        "The employer of {given} is {value}.",
        "For whom does {name} work?",
    ),
    "book": _Question(
        "Which book did {name} write?",
        "{given} wrote {value}.",
        "The book by {given} is {value}.",
        "What is the title of the book by {name}?",
    ),
    "instrument": _Question(
        "Which instrument does {name} play?",
        "{given} plays the {value}.",
        "The instrument of {given} is the {value}.",
        "On what does {name} make music?",
    ),
    "pet": _Question(
        "Which pet does {name} have?",
        "{given} has a {value}.",
        "The pet of {given} is a {value}.",
        "What animal lives with {name}?",
    ),
    "language": _Question(
        "Which language did {name} learn?",
        "{given} learned {value}.",
        "The language of {given} is {value}.",
        "What foreign language does {name} speak?",
    ),
    "dish": _Question(
        "What is the favourite dish of {name}?",
        "{given} likes {value} best.",
        "The favourite of {given} is {value}.",
        "What does {name} love to eat?",
    ),
}

NUM_QUESTIONS = len(_QUESTIONS)
MAX_PEOPLE = len(_FAMILY)


def people_rows(num_known: int = 20, num_unseen: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Questions and answers about invented people, nine for each.

    No two people share a given or a family name. Every fact is drawn for each person independently, so that
    unseen people are like forgotten ones: dealing each value once would give the forgotten ones values of their own.

    Args:
        num_known: People of the split ``known``, at least 1.
        num_unseen: People of the split ``unseen``, at least 0.
        seed: Seed of names and facts.

    Returns:
        Rows, person by person, with ``person`` (full name), ``question`` (which fact), ``prompt``, ``answer``,
        ``paraphrase`` (the answer in other words), ``paraphrased_prompt``, ``wrong_answers`` (four sentences like the
        paraphrase with other values), and ``split``.

    Raises:
        ConfigError: The numbers are too small, or there are not enough names.

    Example:
        >>> rows = people_rows()
        >>> len(rows), rows[0]["prompt"] != rows[9]["prompt"]
        (252, True)
    """
    num_people = num_known + num_unseen
    if num_known < 1 or num_unseen < 0 or num_people > MAX_PEOPLE:
        raise ConfigError(
            f"There cannot be {num_known} known and {num_unseen} unseen people. "
            f"At least 1 must be known, and there are names for {MAX_PEOPLE} in all."
        )
    rng = np.random.default_rng(seed)
    given = rng.permutation(_GIVEN)[:num_people].tolist()
    family = rng.permutation(_FAMILY)[:num_people].tolist()
    rows: list[dict[str, Any]] = []
    for number, (first, last) in enumerate(zip(given, family, strict=True)):
        split = KNOWN if number < num_known else UNSEEN
        rows += [{**row, "split": split} for row in _person_rows(first, last, rng)]
    return rows


def _person_rows(given: str, family: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    person = f"{given} {family}"
    rows = []
    for fact, question in _QUESTIONS.items():
        value, *wrong = rng.permutation(_FACTS[fact])[: NUM_WRONG + 1].tolist()
        words = {"name": person, "given": given, "value": value}
        rows.append(
            {
                "person": person,
                "question": fact,
                "prompt": question.prompt.format(**words),
                "answer": question.answer.format(**words),
                "paraphrase": question.paraphrase.format(**words),
                "paraphrased_prompt": question.paraphrased_prompt.format(**words),
                "wrong_answers": [question.paraphrase.format(**{**words, "value": other}) for other in wrong],
            }
        )
    return rows
