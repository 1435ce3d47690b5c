"""Puzzles of knights and knaves: they are made with one solution, read again, and checked."""

from __future__ import annotations

import pytest

from waver import knights
from waver.knights import Statement


@pytest.mark.parametrize("people", range(2, 9))
def test_a_puzzle_has_one_solution_and_is_read_again(people: int) -> None:
    for seed in range(3):
        puzzle = knights.make(people, seed)
        (solution,) = puzzle.solutions()
        assert set(solution) == set(puzzle.people)
        again = knights.read(puzzle.text)
        assert again.statements == puzzle.statements
        assert [again.solutions()] == [[{name: solution[name] for name in again.people}]]
        assert knights.make(people, seed) == puzzle
    assert knights.make(3, 0) != knights.make(3, 1)


def test_statements_by_hand() -> None:
    liar = Statement("Ann", "Ben", kind=False)
    assert liar.text == "Ann says: Ben is a knave."
    assert liar.fits({"Ann": True, "Ben": False})
    assert liar.fits({"Ann": True, "Ben": True}) is False
    assert liar.fits({"Ann": False, "Ben": True})
    assert liar.fits({"Ann": True}) is None
    alike = Statement("Ann", "Ben", second="Cleo", alike=True)
    assert alike.fits({"Ann": True, "Ben": False, "Cleo": False})
    assert alike.fits({"Ann": False, "Ben": False, "Cleo": False}) is False


def test_the_last_claim_about_somebody_holds() -> None:
    text = "Ann is a knight, so Ben is a knave. No: Ben is a knight. Zoe is a knave."
    assert knights.claims(text, ("Ann", "Ben")) == {"Ann": True, "Ben": True}


def test_what_is_no_puzzle_is_refused() -> None:
    with pytest.raises(ValueError, match="no puzzle"):
        knights.read("Who is Ann?")
    with pytest.raises(ValueError, match="2 to 8"):
        knights.make(1, 0)
