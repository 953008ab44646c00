"""Questions about a scene with their true answers, in many phrasings; one phrasing of each kind is held
out."""

import dataclasses
import itertools

from pictures import COLOUR_NAMES, DIGITS, LETTERS, PLACES, SHAPES

REFUSAL = "I only know simple drawings"
NO_PICTURE = "I see no picture"
NOTHING = "nothing"

# The last phrasing of each is held out: training never has it.
COUNT = [
    "How many shapes are there?",
    "How many objects are in the picture?",
    "How many shapes do you see?",
    "Count the shapes.",
    "Count the objects.",
    "How many things are there?",
    "What is the number of shapes?",
    "How many things can you see in this image?",
    "How many objects are shown?",
    "How many shapes are in the picture?",
]
COUNT_WHAT = [
    "How many {} are there?",
    "How many {} do you see?",
    "Count the {}.",
    "What is the number of {}?",
    "How many {} can you see?",
    "How many {} are shown?",
    "How many {} are in the picture?",
]
COLOUR_OF = [
    "What color is the {}?",
    "What is the color of the {}?",
    "Which color is the {}?",
    "Which color does the {} have?",
    "Tell me the color of the {}.",
    "Name the color of the {}.",
    "What color does the {} have?",
]
SHAPE_OF = [
    "What shape is {}?",
    "Which shape is {}?",
    "What is the {} shape?",
    "What shape is the {} object?",
    "What is {} in the picture?",
    "Name the {} shape.",
    "What is the {} thing?",
    "What is the {} object?",
]
EXISTS = [
    "Is there {}?",
    "Is there {} in the picture?",
    "Do you see {}?",
    "Can you see {}?",
    "Is {} in this image?",
    "Does the picture show {}?",
    "Do you see {} in the picture?",
]
WHERE = [
    "Where is the {}?",
    "Where is the {} in the picture?",
    "In which part of the picture is the {}?",
    "What is the position of the {}?",
    "Where do you see the {}?",
    "Where is the {} in this image?",
]
RELATION = [
    "Is the {} {} the {}?",
    "Is the {} located {} the {}?",
    "Tell me, is the {} {} the {}?",
    "In this picture, is the {} {} the {}?",
]
DESCRIBE = [
    "Describe the picture.",
    "Describe this image.",
    "What is in the image?",
    "What do you see?",
    "What's in this image?",
    "Tell me what you see.",
    "What does the picture show?",
    "What is this?",
    "What can you see here?",
    "What is in this picture?",
    "Describe what you see.",
]
READ = [
    "What is written here?",
    "Read the text.",
    "What does it say?",
    "What is written in the picture?",
    "Read what is written.",
    "What text is shown?",
    "What do you read?",
    "Which text do you see?",
]
READ_WHAT = [
    "What {} is this?",
    "Which {} is shown?",
    "Read the {}.",
    "Which {} do you see?",
    "What {} is it?",
    "Name the {}.",
    "What {} is in the picture?",
]
TEXT_KIND = [
    "Is this a letter or a number?",
    "Is it a letter or a number?",
    "Is it a number or a letter?",
    "Is this a number or a letter?",
]
IS_TEXT = ["Is this {}?", "Is it {}?", "Does the picture show {}?", "Do you see {}?"]
BACKGROUND = [
    "Is the background light or dark?",
    "Is the background dark or light?",
    "How bright is the background?",
    "What is the background like?",
]
RELATIONS = {
    "left": ["to the left of", "left of"],
    "right": ["to the right of", "right of"],
    "above": ["above", "higher than"],
    "below": ["below", "under", "lower than"],
}
# What people add to any question.
BEFORE = ["In this picture, ", "In this image, ", "Tell me, ", "Please tell me, ", "Look at the picture. "]
BEHIND = ["in the picture", "in the image", "in this image", "in this picture", "here"]
# Phrasings that came after the tokenizer, which is made from the lists above, by the first of its kind.
LATER = {
    BACKGROUND[0]: [
        "What does the background look like?",
        "Describe the background.",
        "Tell me about the background.",
        "What kind of background is this?",
    ],
    READ[0]: [
        "Which characters are written here?",
        "What text do you see in the picture?",
        "Which text is shown here?",
    ],
    IS_TEXT[0]: ["Can you see {}?", "Is there {}?", "Is {} shown?", "Is {} written here?"],
}
EITHER_SIDE = 14  # pixels that one thing must lie off another to be beside, above or below it


@dataclasses.dataclass
class Question:
    """`look` says which things the answer is about, for each word of it or for all: indices into
    Scene.things. `names` are words of `text` that name one thing, with its index."""

    kind: str
    text: str
    answer: str
    look: list
    names: list = dataclasses.field(default_factory=list)


class Asker:
    """With `added`, words that say nothing stand before and behind some questions, so that they are not
    taken for a sign of what is asked; the phrasings that are held out stay so."""

    def __init__(self, rng, held=False, added=False):
        self.rng, self.held, self.added = rng, held, added

    def questions(self, scene, count):
        asked = {}
        while len(asked) < count:
            question = self._refusal() if self.rng.random() < 0.05 else self._about(scene)
            if question:
                asked[question.text] = question
        return list(asked.values())

    def without_picture(self):
        if self.rng.random() < 0.5:
            return self._refusal()
        forms = self.rng.choice([COUNT, DESCRIBE, READ, BACKGROUND, COLOUR_OF, COUNT_WHAT, EXISTS])
        shape, colour = self.rng.choice(SHAPES), self.rng.choice(COLOUR_NAMES)
        what = {
            id(COLOUR_OF): shape,
            id(COUNT_WHAT): plural(f"{colour} {shape}"),
            id(EXISTS): f"a {colour} {shape}",
        }
        return Question("no picture", self._phrase(forms, what.get(id(forms), "")), NO_PICTURE, [])

    def _phrase(self, forms, *names):
        rng = self.rng
        text = (forms[-1] if self.held else self._trained(forms)).format(*names)
        if rng.random() < 0.3:
            text = text.replace("color", "colour")
        style = rng.random()
        if style < 0.15:
            text = text[0].lower() + text[1:]
        return text.rstrip("?.") if 0.08 < style < 0.22 else text

    def _trained(self, forms):
        if not self.added:
            return self.rng.choice(forms[:-1])
        form = self.rng.choice([*forms[:-1], *LATER.get(forms[0], [])])
        if self.rng.random() > 0.4:
            return form
        other = form
        if self.rng.random() < 0.5:
            start = self.rng.choice(BEFORE)
            joined = other if start.endswith(". ") else other[0].lower() + other[1:]
            other = start + joined
        named = any(f" {behind}" in other for behind in [*BEHIND, "this image", "the picture", "the image"])
        if not named and other[-1] in "?." and self.rng.random() < 0.6:
            other = f"{other[:-1]} {self.rng.choice(BEHIND)}{other[-1]}"
        return form if other.lower() == forms[-1].lower() else other

    def _refusal(self):
        return Question("refusal", out_of_domain(self.rng), REFUSAL, [])

    def _about(self, scene):
        if scene.text:
            kinds = {
                self._read: 8,
                self._text_kind: 1.5,
                self._text_colour: 2,
                self._describe: 3,
                self._is_text: 5 if self.added else 2.5,
                self._background: 0.5,
            }
        elif scene.things:
            kinds = {
                self._count: 3,
                self._count_what: 6 if self.added else 3,
                self._colour: 3,
                self._shape: 3,
                self._exists: 4 if self.added else 3,
                self._where: 5 if self.added else 3,
                self._relation: 16 if self.added else 4,
                self._describe: 5,
                self._no_text: 0.6,
                self._background: 1.5 if self.added else 0.6,
            }
        else:
            kinds = {
                self._count: 1,
                self._exists: 1,
                self._describe: 2,
                self._no_text: 1,
                self._background: 1,
            }
        return self.rng.choices(list(kinds), kinds.values())[0](scene)

    # --- shapes ------------------------------------------------------------------------------

    def _count(self, scene):
        everything = list(range(len(scene.things)))
        return Question("count", self._phrase(COUNT), str(len(scene.things)), everything)

    def _count_what(self, scene):
        rng = self.rng
        colour = rng.choice([t.colour for t in scene.things] if rng.random() < 0.75 else COLOUR_NAMES)
        shape = rng.choice([t.kind for t in scene.things] if rng.random() < 0.75 else SHAPES)
        form = rng.random()
        if form < 0.4:
            what, look = plural(shape), where(scene, kind=shape)
        elif form < 0.75:
            what, look = (
                f"{colour} {rng.choice(['shapes', 'objects', 'things'])}",
                where(scene, colour=colour),
            )
        else:
            what, look = plural(f"{colour} {shape}"), where(scene, kind=shape, colour=colour)
        return Question("count of some", self._phrase(COUNT_WHAT, what), str(len(look)), look)

    def _colour(self, scene):
        shape = self.rng.choice([t.kind for t in scene.things] if self.rng.random() < 0.85 else SHAPES)
        look = where(scene, kind=shape)
        if len(look) > 1:
            return None
        answer = scene.things[look[0]].colour if look else f"there is no {shape}"
        return Question("color", self._phrase(COLOUR_OF, shape), answer, look)

    def _shape(self, scene):
        colour = self.rng.choice(
            [t.colour for t in scene.things] if self.rng.random() < 0.85 else COLOUR_NAMES
        )
        look = where(scene, colour=colour)
        if len(look) > 1:
            return None
        answer = scene.things[look[0]].kind if look else f"nothing is {colour}"
        return Question("shape", self._phrase(SHAPE_OF, colour), answer, look)

    def _exists(self, scene):
        rng = self.rng
        if scene.things:
            thing = rng.choice(scene.things)
            colour, shape = thing.colour, thing.kind
        if not scene.things or rng.random() < 0.55:
            if not scene.things or rng.random() < 0.5:
                colour = rng.choice(COLOUR_NAMES)
            if not scene.things or colour == thing.colour:
                shape = rng.choice(SHAPES)
        form = rng.random()
        if form < 0.6:
            what, look = f"{colour} {shape}", where(scene, kind=shape, colour=colour)
        elif form < 0.8:
            what, look = shape, where(scene, kind=shape)
        else:
            what, look = f"{colour} shape", where(scene, colour=colour)
        return Question("yes or no", self._phrase(EXISTS, article(what)), "yes" if look else "no", look)

    def _where(self, scene):
        rng = self.rng
        if rng.random() < 0.12:
            shape, colour = rng.choice(SHAPES), rng.choice(COLOUR_NAMES)
        else:
            thing = rng.choice(scene.things)
            shape, colour = thing.kind, thing.colour
        look = where(scene, kind=shape, colour=colour)
        if len(look) > 1 or (look and scene.things[look[0]].place is None):
            return None
        answer = PLACES[scene.things[look[0]].place] if look else f"there is no {colour} {shape}"
        return Question("position", self._phrase(WHERE, f"{colour} {shape}"), answer, look)

    def _relation(self, scene):
        rng = self.rng
        names = [t.name for t in scene.things]
        single = [i for i, name in enumerate(names) if names.count(name) == 1]
        if len(single) < 2:
            return None
        i, j = rng.sample(single, 2)
        # Sides are learned later than heights.
        way = rng.choice(["left", "right", *RELATIONS] if self.added else list(RELATIONS))
        a, b = scene.things[i], scene.things[j]
        off = b.x - a.x if way in ("left", "right") else b.y - a.y
        if abs(off) < EITHER_SIDE:
            return None
        yes = (off > 0) == (way in ("left", "above"))
        text = self._phrase(RELATION, a.name, rng.choice(RELATIONS[way]), b.name)
        named = [(a.name, i), (b.name, j)]
        return Question("relation", text, "yes" if yes else "no", [i, j], named)

    def _no_text(self, scene):
        if self.rng.random() < 0.5:
            return Question("no text", self._phrase(READ), "there is no text", [])
        what = self.rng.choice(["a letter", "a number", "any text"])
        return Question("no text", self._phrase(EXISTS, what), "no", [])

    # --- characters --------------------------------------------------------------------------

    def _read(self, scene):
        forms = (READ,) if self.rng.random() < 0.6 else (READ_WHAT, noun(scene.text))
        return Question("read", self._phrase(*forms), scene.text, [[i] for i in range(len(scene.text))])

    def _text_kind(self, scene):
        return Question(
            "letter or number", self._phrase(TEXT_KIND), f"a {noun(scene.text)}", everything(scene)
        )

    def _text_colour(self, scene):
        return Question(
            "color", self._phrase(COLOUR_OF, noun(scene.text)), scene.things[0].colour, everything(scene)
        )

    def _is_text(self, scene):
        rng, text = self.rng, scene.text
        if rng.random() < 0.3:
            what = rng.choice(["letter", "number", *SHAPES])
            return Question(
                "yes or no",
                self._phrase(EXISTS, f"a {what}"),
                "yes" if what == noun(text) else "no",
                everything(scene),
            )
        if rng.random() < 0.5:
            text = (
                rng.choice(LETTERS if text in LETTERS else DIGITS)
                if len(text) == 1
                else str(rng.randint(10, 99))
            )
        asked = self._phrase(IS_TEXT, f"the {noun(text)} {text}")
        return Question("yes or no", asked, "yes" if text == scene.text else "no", everything(scene))

    # --- both --------------------------------------------------------------------------------

    def _describe(self, scene):
        things = scene.things
        if scene.text:
            answer, look = f"{article(things[0].colour)} {noun(scene.text)} {scene.text}", everything(scene)
        elif any(b.x - a.x < 8 for a, b in itertools.pairwise(things)):
            return None  # which is further left is hard to say
        else:
            names = [article(t.name) for t in things] or [NOTHING]
            answer = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
            look = [[i] for i in range(len(things))]
        return Question("describe", self._phrase(DESCRIBE), answer, look)

    def _background(self, scene):
        return Question("background", self._phrase(BACKGROUND), scene.ground, [])


def everything(scene):
    return list(range(len(scene.things)))


def where(scene, kind=None, colour=None):
    return [i for i, t in enumerate(scene.things) if kind in (None, t.kind) and colour in (None, t.colour)]


def noun(text):
    return "letter" if text in LETTERS else "number"


def plural(what):
    return what + ("es" if what.endswith("cross") else "s")


def article(what):
    return ("an " if what[0] in "aeiou" else "a ") + what


# --- what it does not know ---------------------------------------------------------------------

WORDS = (
    "dog cat man woman child house tree car train river mountain country city capital France Paris "
    "Germany history war poem story joke song president weather today tomorrow time year price money book "
    "author film music food recipe soup bread coffee water physics math equation computer code python "
    "program function server network language English word sentence name age people friend love life "
    "meaning world universe football game team winner sun moon earth planet animal bird fish horse face "
    "smile hat shirt street sign building sky cloud beach photo photograph camera phone email doctor "
    "health medicine school teacher law company work job travel flight hotel"
).split()
OTHER = [
    "Who are you?",
    "What is your name?",
    "Who made you?",
    "How are you?",
    "Hello!",
    "Hi",
    "Thank you.",
    "What can you do?",
    "Help me",
    "Good morning",
    "What is the {} of {}?",
    "Tell me a {} about a {}.",
    "Write a {} about the {}.",
    "Who is the {} of the {}?",
    "When was the {} of {}?",
    "Why is the {} so {}?",
    "How do I make {}?",
    "Translate the {} into {}.",
    "Is there a {} in the picture?",
    "What is the {} doing?",
    "Where is the {}?",
    "How old is the {}?",
    "Explain {} and {} to me.",
    "Can you help me with my {}?",
    "What do you think about {}?",
    "How many {}s are in the {}?",
    "Give me a {} for {}.",
    "Do you like {}?",
    "What is the best {} in {}?",
    "What breed is the {}?",
    "Is the {} happy?",
    "What is 2 plus 3?",
    "What color is the {}?",
    "Summarize the {} of {}.",
    "Please write {} for a {}.",
    "Which {} is on the {}?",
    "Are there any {}s?",
    "Describe the {} next to the {}.",
]


def out_of_domain(rng):
    text = rng.choice(OTHER)
    words = [invented(rng) if rng.random() < 0.2 else rng.choice(WORDS) for _ in range(text.count("{}"))]
    text = text.format(*words)
    return text if rng.random() < 0.8 else text.lower().rstrip("?.!")


def invented(rng):
    return "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
