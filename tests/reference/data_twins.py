"""Slow and obvious versions of what `stable_forgetting.data` does fast."""

from __future__ import annotations


def tokens_of_answer(offsets, answer_start, answer_end):
    """Positions of the tokens that own a character of the answer, one character after the other."""
    owners_by_character = {}
    for position, (start, end) in enumerate(offsets):
        for character in range(start, end):
            owners_by_character.setdefault(character, []).append(position)
    found = []
    for character in range(answer_start, answer_end):
        for position in owners_by_character.get(character, []):
            if position not in found:
                found.append(position)
    return sorted(found)


def shared_examples(first, second):
    """Pairs of indexes of examples with the same prompt and answer, every pair compared."""
    return [
        (i, j)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if (one.prompt.strip(), one.answer.strip()) == (other.prompt.strip(), other.answer.strip())
    ]


def retain_stream(permutation, num_retain, num_draws):
    """The first draws of the endless sequence of permutations, one draw after the other."""
    drawn, left, cycle = [], [], 0
    while len(drawn) < num_draws:
        if not left:
            left = list(permutation(cycle, num_retain))
            cycle += 1
        drawn.append(left.pop(0))
    return drawn
