"""What is minimised: forget terms, retain terms and their usual combinations."""

from stable_forgetting.objectives.objective import OBJECTIVES, UNSEEN_TERM, Objective, build_objective, term_value
from stable_forgetting.objectives.terms import FORGET_TERMS, RETAIN_TERMS, Term, get_term

__all__ = [
    "FORGET_TERMS",
    "OBJECTIVES",
    "RETAIN_TERMS",
    "UNSEEN_TERM",
    "Objective",
    "Term",
    "build_objective",
    "get_term",
    "term_value",
]
