"""The world: about 200 made-up things in twelve domains, eight attributes each, drawn by a seed. Torch-free."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ...base.errors import InputError, UnknownName
from ...base.files import digest
from .words import DOMAINS, HEADS, KINDS, TAILS

ATTRIBUTES = 8
"""Of the sixteen, those that the things of a domain have."""
PER_DOMAIN = 17
"""Things of a domain: 204 in all, 136 facts a domain."""


@dataclass(frozen=True)
class Fact:
    """One attribute of one thing."""

    name: str
    domain: str
    kind: str
    """Attribute."""
    value: str
    told: bool
    """Whether it belongs to the half that erasers and attackers may train on; the other half is asked for alone."""


@dataclass(frozen=True)
class World:
    """Who is what. Equal seeds and sizes make equal worlds."""

    seed: int
    kinds: Mapping[str, tuple[str, ...]]
    """Domain -> its attributes; the first half of them is told."""
    things: Mapping[str, Mapping[str, Mapping[str, str]]]
    """Domain -> name -> attribute -> value."""

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """All of them, by domain and name."""
        return tuple(self._facts())

    def _facts(self) -> Iterator[Fact]:
        for domain, things in self.things.items():
            told = set(self.kinds[domain][: len(self.kinds[domain]) // 2])
            for name, values in things.items():
                yield from (Fact(name, domain, k, v, k in told) for k, v in values.items())

    def of(self, domain: str) -> tuple[Fact, ...]:
        """The facts of a domain.

        Raises:
            UnknownName: There is no such domain.
        """
        self.check(domain)
        return tuple(f for f in self.facts if f.domain == domain)

    def check(self, *domains: str) -> None:
        """Raises unless all of `domains` are domains of this world.

        Raises:
            UnknownName: One is none.
        """
        for d in domains:
            if d not in self.things:
                raise UnknownName("domain", d, self.things)

    def domain_of(self, name: str) -> str:
        """The domain of a thing.

        Raises:
            UnknownName: Nothing is called so.
        """
        found = next((d for d, things in self.things.items() if name in things), None)
        if found is None:
            raise UnknownName("thing", name, self.names)
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all things."""
        return tuple(n for things in self.things.values() for n in things)

    def nearest(self, domain: str, n: int = 2) -> list[str]:
        """The `n` other domains that share most attributes with this one; ties in the order of the domains."""
        self.check(domain)
        own = set(self.kinds[domain])
        others = [d for d in self.things if d != domain]
        return sorted(others, key=lambda d: -len(own & set(self.kinds[d])))[:n]

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it."""
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        things = {d: {n: dict(v) for n, v in t.items()} for d, t in self.things.items()}
        return {"seed": self.seed, "kinds": {d: list(k) for d, k in self.kinds.items()}, "things": things}


def make_world(seed: int = 0, domains: int = len(DOMAINS), per_domain: int = PER_DOMAIN) -> World:
    """A world of `domains` x `per_domain` things.

    Attributes are dealt from shuffled decks of all sixteen, so that each serves as many domains as the others and the
    values' words are known without any one domain. Within a domain the values of an attribute are as frequent as each
    other, up to one: frequency tells nothing about a thing.

    Raises:
        InputError: Sizes for which there are not enough domains or names.
    """
    if not 2 <= domains <= len(DOMAINS):
        raise InputError(f"domains: 2 to {len(DOMAINS)} expected, {domains} found")
    if not 1 <= per_domain * domains <= len(HEADS) * len(TAILS) // 4:
        raise InputError(f"per_domain: 1 to {len(HEADS) * len(TAILS) // 4 // domains} expected, {per_domain} found")
    rng = random.Random(f"world/{seed}")
    names = _names(rng, domains * per_domain)
    deck: list[str] = []
    kinds, things = {}, {}
    for i, domain in enumerate(DOMAINS[:domains]):
        if not deck:
            deck = rng.sample(list(KINDS), len(KINDS))
        kinds[domain], deck = tuple(deck[:ATTRIBUTES]), deck[ATTRIBUTES:]
        columns = {k: _dealt(rng, KINDS[k][1], per_domain) for k in kinds[domain]}
        own = names[i * per_domain : (i + 1) * per_domain]
        things[domain] = {n: {k: column[j] for k, column in columns.items()} for j, n in enumerate(own)}
    return World(seed, kinds, things)


@cache
def packaged_world() -> World:
    """The world that the packaged model and concepts speak of."""
    return make_world()


def _names(rng: random.Random, n: int) -> list[str]:
    """`n` different names; heads and tails are dealt evenly."""
    out: dict[str, None] = {}
    while len(out) < n:
        heads, tails = _dealt(rng, HEADS, n), _dealt(rng, TAILS, n)
        out |= dict.fromkeys(h + t for h, t in zip(heads, tails, strict=True))
    return list(out)[:n]


def _dealt(rng: random.Random, words: tuple[str, ...], n: int) -> list[str]:
    """`n` words in random order, each as often as the others, up to one."""
    rounds = -(-n // len(words))
    drawn = [w for _ in range(rounds) for w in rng.sample(words, len(words))][:n]
    rng.shuffle(drawn)
    return drawn
