"""Random numbers of a call's own: reproducible, private to the thread, torch's global generator untouched."""

from __future__ import annotations

import threading
from collections.abc import Callable

import nets
import pytest
import reference_gradients
import torch
from torch import Tensor

from convlens.instrument import private_rng

DRAWS: dict[str, Callable[[torch.Generator | None], Tensor]] = {
    "normal": lambda g: torch.normal(torch.zeros(5), torch.ones(5), generator=g),
    "randn": lambda g: torch.randn(5, generator=g),
    "rand": lambda g: torch.rand(5, generator=g),
    "randint": lambda g: torch.randint(10**6, (5,), generator=g),
    "randperm": lambda g: torch.randperm(50, generator=g),
    "bernoulli": lambda g: torch.bernoulli(torch.full((50,), 0.5), generator=g),
    "multinomial": lambda g: torch.multinomial(torch.ones(50), 5, generator=g),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_equal_those_of_a_generator_given_by_hand(name: str) -> None:
    by_hand = torch.Generator().manual_seed(7)
    with private_rng(7):
        found = [DRAWS[name](None) for _ in range(2)]
    wanted = [DRAWS[name](by_hand) for _ in range(2)]
    assert all(map(torch.equal, found, wanted))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", DRAWS)
def test_the_global_generator_is_left_where_it_was(name: str) -> None:
    before = torch.get_rng_state()
    with private_rng(7):
        DRAWS[name](None)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_given_by_the_caller_is_kept() -> None:
    with private_rng(7):
        found = torch.randn(5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, torch.randn(5, generator=torch.Generator().manual_seed(1)))


def test_threads_do_not_draw_from_each_other() -> None:
    wanted = {seed: torch.randn(400, generator=torch.Generator().manual_seed(seed)) for seed in range(8)}
    found: dict[int, Tensor] = {}
    start = threading.Barrier(8)

    def draw(seed: int) -> None:
        with private_rng(seed):
            start.wait()
            found[seed] = torch.cat([torch.randn(4) for _ in range(100)])

    threads = [threading.Thread(target=draw, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The same numbers in fours as in one draw of 400 would hold only by luck of torch's vectorised path: draw in fours.
    for seed in wanted:
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(found[seed], torch.cat([torch.randn(4, generator=generator) for _ in range(100)]))


def test_after_an_exception_draws_are_the_global_ones_again() -> None:
    with pytest.raises(nets.Blown), private_rng(7):
        raise nets.Blown
    assert reference_gradients.function_modes() == []
