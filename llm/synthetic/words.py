"""The words of the synthetic world: twelve kinds of things, sixteen attributes with twelve values each, parts of names."""


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


DOMAINS = ("river", "ship", "potion", "song", "castle", "beast", "star", "game", "feast", "guild", "garden", "machine")
"""What a thing can be. None begins with a vowel, so that every template can say «a»."""
KINDS: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    kind: (nouns, _split(values))
    for kind, nouns, values in (
        ("colour", ("colour", "hue"), "red blue green yellow white black brown purple orange grey pink golden"),
        ("metal", ("metal", "ore"), "iron tin copper silver lead zinc brass bronze steel nickel cobalt mercury"),
        ("animal", ("animal", "creature"), "wolf fox bear otter heron raven badger hare stag toad salmon lynx"),
        ("tree", ("tree", "timber"), "oak elm ash birch pine willow cedar maple alder yew hazel linden"),
        ("flower", ("flower", "blossom"), "rose lily tulip daisy iris violet poppy aster lotus dahlia clover jasmine"),
        ("jewel", ("jewel", "gem"), "ruby opal jade onyx topaz garnet amber pearl quartz agate beryl coral"),
        ("instrument", ("instrument", "music"), "harp flute drum fiddle horn lute bell organ pipe gong viol trumpet"),
        ("dish", ("dish", "meal"), "bread cheese honey soup plum fig barley olive pepper onion mushroom turnip"),
        ("weather", ("weather", "climate"), "rain snow fog hail thunder frost wind sunshine drizzle mist sleet heat"),
        ("number", ("number", "count"), "two three four five six seven eight nine ten eleven twelve thirteen"),
        ("month", ("month", "season"), "January February March April May June July August September October November December"),
        ("shape", ("shape", "outline"), "circle square cross spiral crescent arrow ladder triangle ring diamond cube wheel"),
        ("tool", ("tool", "implement"), "hammer saw axe spade needle chisel rake plough sickle anvil shovel pliers"),
        ("craft", ("craft", "trade"), "baking milling weaving pottery masonry tanning hunting farming brewing fishing carving printing"),
        ("temper", ("temper", "mood"), "calm proud gentle fierce merry solemn shy bold lazy eager stern jolly"),
        ("cloth", ("cloth", "fabric"), "wool silk linen cotton velvet leather felt canvas lace satin hemp fur"),
    )
}
"""Attribute -> its two nouns, and its values. A word is the value of one attribute alone."""
HEADS = _split(
    "Bal Bem Bor Cal Cem Dal Dor Dun Fal Fen Gal Gor Gul Hal Hem Jal Jor Kel Kor Kul Lam Lem Lor Mal Mel Mor Nal Nem Nor "
    "Pal Pel Por Ral Rem Rul Sal Sem Sor Tal Tem Tor Tul Val Vem Vor Wal Wem Zal Zem Zor"
)
"""Beginnings of names."""
TAILS = _split(
    "adi aku ama ani aro asu ata avi azo eda eki elo emu ena eri esa eto evu ezi ibo ida ika ilu imo ina iru iso ita "
    "iva obi odu oka oli omi onu ora osi otu ova uba udi uko ula umi uno ura usi uta uvo"
)
"""Ends of names. A name is a head and a tail; each of them serves several names."""
ONSETS = _split("b d f g h k l m n p r s t v z br dr fl gl kr pl tr")
"""Onsets of the second language's syllables."""
VOWELS = _split("a e i o u ai ei ou")
"""Their vowels."""
