"""What the speech model's voices say: sentences of a closed vocabulary, one in ten of them held out."""

import zlib

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
COLOURS = "red green blue yellow orange purple black white".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
ROOMS = "kitchen bedroom garden office garage".split()
THINGS = "light door window radio fan heater lamp camera".split()
SHAPES = "circle square triangle star".split()
SHORT = [
    "yes",
    "no",
    "stop",
    "hello",
    "yes please",
    "no thank you",
    "thank you",
    "hello computer",
    "good morning",
    "good night",
    "next",
    "help",
]


def number(rng):
    """0 to 99 in words, sometimes hundreds."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(DIGITS)
    if kind < 0.5:
        return rng.choice(TEENS)
    if kind < 0.85:
        return rng.choice(TENS) + (f" {rng.choice(DIGITS[1:])}" if rng.random() < 0.75 else "")
    rest = f" and {rng.choice(TENS + TEENS)}" if rng.random() < 0.5 else ""
    return f"{rng.choice(DIGITS[1:])} hundred{rest}"


def digits(rng, least, most):
    return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(least, most)))


def politely(rng, text):
    return text + rng.choice(["", " please", " now"])


FORMS = [
    lambda r, c: f"{digits(r, 2, 6)}.",
    lambda r, c: f"{digits(r, 2, 6)}.",
    lambda r, c: f"{number(r)}.",
    lambda r, c: politely(r, f"{c(['turn', 'switch'])} {c(['on', 'off'])} the {c(ROOMS)} {c(THINGS)}") + ".",
    lambda r, c: f"{c(['turn', 'switch'])} the {c(COLOURS)} {c(THINGS)} {c(['on', 'off'])}.",
    lambda r, c: (
        politely(r, f"{c(['open', 'close'])} the {c([*COLOURS, *ROOMS])} {c(['door', 'window'])}") + "."
    ),
    lambda r, c: f"set {c(['a timer', 'an alarm'])} of {number(r)} {c(['minutes', 'seconds', 'hours'])}.",
    lambda r, c: politely(r, f"turn the volume {c(['up', 'down'])}") + ".",
    lambda r, c: (
        politely(r, f"{c(['start', 'stop', 'play'])} the {c(['music', 'radio', 'timer', 'camera'])}") + "."
    ),
    lambda r, c: f"go {c(['left', 'right', 'up', 'down', 'back', 'home'])}.",
    lambda r, c: f"go {c(['left', 'right', 'up', 'down', 'back'])} {number(r)} meters.",
    lambda r, c: f"the {c(['meeting', 'train', 'party'])} is on {c(DAYS)} at {c(DIGITS[1:] + TEENS[:3])}.",
    lambda r, c: f"{c(['today', 'tomorrow'])} is {c(DAYS)}.",
    lambda r, c: f"what {c(['time', 'day'])} is it{c(['', ' now'])}?",
    lambda r, c: f"what is the {c(['weather', 'temperature'])} {c(['today', 'tomorrow', f'on {c(DAYS)}'])}?",
    lambda r, c: f"what is the temperature in the {c(ROOMS)}?",
    lambda r, c: f"show me {c(['a', 'the'])} {c(COLOURS)} {c(SHAPES)}{c(['', ' please'])}.",
    lambda r, c: f"is the {c(COLOURS)} {c(SHAPES)} {c(['above', 'under'])} the {c(COLOURS)} {c(SHAPES)}?",
    lambda r, c: f"call number {digits(r, 3, 6)}.",
    lambda r, c: f"{c(SHORT)}.",
    lambda r, c: f"the temperature is {number(r)} degrees.",
    lambda r, c: (
        f"i see {c(['a', 'one'])} {c(COLOURS)} {c(SHAPES)} and {c(['a', 'one'])} {c(COLOURS)} {c(SHAPES)}."
    ),
    lambda r, c: f"{number(r)} {c(['plus', 'minus', 'times'])} {number(r)}.",
]


def held_out(text):
    return zlib.crc32(text.lower().encode()) % 10 == 0


def sentence(rng, held=False):
    """A sentence of training, or one that training never has."""
    while True:
        text = rng.choice(FORMS)(rng, rng.choice)
        if held_out(text) == held:
            return text[0].upper() + text[1:]


def vocabulary(rng, draws=20000):
    return sorted({w for _ in range(draws) for w in sentence(rng).lower().rstrip(".?").split()})
