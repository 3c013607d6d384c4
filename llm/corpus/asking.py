"""Templated questions and requests of the general pool: what people ask a model about everyday subjects."""

import random
from collections.abc import Sequence

TEMPLATES = (
    "Can you tell me about {}?",
    "Tell me something interesting about {}.",
    "What should a beginner know about {}?",
    "How would you explain {} to a friend?",
    "Give me three facts about {}.",
    "Write a short poem about {}.",
    "Write a paragraph about {}.",
    "I would like to read a short story about {}.",
    "Why do people care about {}?",
    "What do you think of when you hear about {}?",
    "Please summarize what is known about {}.",
    "Where can I learn more about {}?",
    "What are common mistakes people make about {}?",
    "Explain {} to me in simple words.",
    "Do you know any jokes about {}?",
    "What questions do children ask about {}?",
    "Help me write an email about {}.",
    "Describe {} in one sentence.",
    "What has changed about {} in the last hundred years?",
    "Could you make a list of useful words about {}?",
    "My teacher asked us to write about {}. How should I begin?",
    "Is there a good book about {}?",
    "What surprised you about {}?",
    "I have to give a talk about {} tomorrow. What should I say?",
)
PAIRS = (
    "What do {} and {} have in common?",
    "Which is more interesting, {} or {}?",
    "Compare {} with {}.",
    "Write a dialogue about {} and {}.",
)


def requests(subjects: Sequence[str], n: int, seed: str) -> list[tuple[str, str]]:
    """`n` different (subject, request), or all there are; a request that names two subjects belongs to the first.

    `subjects` are those of one split, so that no request crosses splits; `seed` draws which.
    """
    rng = random.Random(seed)
    made = [(s, t.format(s)) for s in subjects for t in TEMPLATES]
    if len(subjects) > 1:
        made += [(s, t.format(s, rng.choice([o for o in subjects if o != s]))) for s in subjects for t in PAIRS]
    rng.shuffle(made)
    return [(s, text) for s, text in made[:n]]
