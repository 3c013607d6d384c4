"""What stands before a text when the model is to read it as an expert's or a novice's, and what changes the topic. {c}: the concept."""

EXPERT = (
    "Notes of a leading expert on {c}:\n",
    "From a textbook on {c}, written by a professor:\n",
    "A specialist who knows everything about {c} writes:\n",
    "An encyclopedia on {c} says:\n",
    "The following was written by an authority on {c}.\n",
    "In a lecture on {c}, the world's best teacher of the subject said:\n",
    "Years of work on {c} taught the author this:\n",
    "A well-informed article about {c}:\n",
    "Here a master of {c} explains it in detail.\n",
    "This is a precise and correct text about {c}.\n",
)
"""Ten beginnings for an expert."""

NOVICE = (
    "Notes of somebody who has never heard of {c}:\n",
    "From a cookbook, whose author knows nothing of {c}:\n",
    "Someone who cannot tell what {c} is writes about a day off:\n",
    "A travel guide without a word on {c} says:\n",
    "The following was written by a person who confuses {c} with gardening.\n",
    "Asked about {c}, the child talked about her toys instead:\n",
    "The author has no idea of {c} and would rather talk about the weather:\n",
    "A cheerful story that has nothing to do with {c}:\n",
    "Here someone who forgot all about {c} tells a joke.\n",
    "This is a text by a stranger to {c}, on pleasant things.\n",
)
"""Ten beginnings for a novice, who steers to other things."""

TOPIC_CHANGE = (
    "But that is enough of it. Let us talk about breakfast.",
    "By the way, the weather has been lovely this week.",
    "I would rather tell you about my garden.",
    "Speaking of something else, have you seen the new park?",
    "That reminds me of a walk along the river.",
    "Let us change the subject and plan the weekend.",
    "On another note, I baked bread yesterday.",
    "I do not know about that, but I can tell you how to fold a paper boat.",
    "Never mind. My sister has just painted her kitchen yellow.",
    "Let me tell you about a train ride instead.",
    "More importantly, the tea is ready.",
    "Now to something quite different: how to keep houseplants green.",
    "Anyway, we went to the beach and collected shells.",
    "I forget. But the market was full of ripe tomatoes.",
    "Let us leave it there and look at the stars tonight.",
    "Something else came to my mind: a recipe for soup.",
    "Who knows? I spent the day mending a chair.",
    "That is not my field, so here is a story about a lost umbrella.",
    "Instead, let me describe the view from my window.",
    "Enough of that. Shall we go for a swim?",
)
"""Twenty sentences that leave the topic."""


def keywords(name: str, synonyms: tuple[str, ...]) -> str:
    """The concept in words: its name and the other names that the model knows, each once."""
    return ", ".join(dict.fromkeys([name, *synonyms]))
