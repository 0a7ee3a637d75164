"""The kinds of things in the scenes: 173 emoji with plain English names, in groups of things that occur together.

A name is Unicode's own, shortened to one word where Unicode says more ("lion face", "automobile"); each is one token of
the demo model's tokenizer after a space, so that one token of an image can say what one word says. Twins are left out:
of rat and mouse, ship and ferry, or man and boy one would be asked for the other.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = {
    "farm": "🐄 cow 🐖 pig 🐑 sheep 🐐 goat 🐔 chicken 🦆 duck 🐎 horse 🐇 rabbit 🦃 turkey 🚜 tractor"
    " 🐕 dog 🐈 cat",
    "wild animals": "🐅 tiger 🦁 lion 🐘 elephant 🐒 monkey 🦍 gorilla 🦘 kangaroo 🐊 crocodile 🐍 snake 🦎 lizard"
    " 🐻 bear 🦌 deer 🦇 bat 🦉 owl 🦅 eagle 🦜 parrot 🐺 wolf",
    "sea": "🐋 whale 🐬 dolphin 🦈 shark 🐙 octopus 🦀 crab 🦞 lobster 🦐 shrimp 🐢 turtle 🐧 penguin"
    " 🦪 oyster ⚓ anchor 🚢 ship 🪸 coral",
    "small animals": "🐌 snail 🐜 ant 🕷 spider 🦋 butterfly 🐛 bug 🦟 mosquito 🪱 worm 🪲 beetle 🐝 bee 🐸 frog",
    "fruit": "🍎 apple 🍌 banana 🍍 pineapple 🍐 pear 🍑 peach 🍓 strawberry 🍉 watermelon 🍋 lemon"
    " 🥭 mango 🥥 coconut",
    "kitchen": "🍅 tomato 🥕 carrot 🥔 potato 🥒 cucumber 🧅 onion 🥑 avocado 🍞 bread 🥚 egg 🥄 spoon"
    " 🥪 sandwich 🥧 pie 🍪 cookie 🍕 pizza 🍄 mushroom 🧀 cheese 🎂 cake",
    "traffic": "🚌 bus 🚕 taxi 🚗 car 🚑 ambulance 🚲 bicycle 🚁 helicopter 🚀 rocket ✈ airplane 🛶 canoe"
    " 🛞 wheel 🚆 train",
    "town": "⛪ church 🏥 hospital 🏨 hotel 🏭 factory 🏰 castle 🏠 house ⛲ fountain 🎪 circus",
    "outdoors": "⛺ tent 🌋 volcano 🌵 cactus 🌹 rose 🌻 sunflower 🌲 tree 🌈 rainbow ☁ cloud 🔥 fire 🪨 rock"
    " 🌙 moon ⭐ star 🍁 leaf",
    "music and play": "🎸 guitar 🎺 trumpet 🎻 violin 🥁 drum 🎹 piano 🎈 balloon 🪁 kite 🏐 volleyball ⚾ baseball"
    " 🏀 basketball 🏆 trophy 🎁 gift 🎲 dice 🧩 puzzle",
    "tools": "🔨 hammer 🔧 wrench 🪓 axe 🪜 ladder 🧲 magnet ⚙ gear 🔋 battery 🔑 key 🔒 lock 🔔 bell"
    " 🪣 bucket 🪝 hook 🧱 brick 💣 bomb",
    "house": "🚪 door 🛏 bed 🪑 chair 🪞 mirror 🛁 bathtub 🚽 toilet 🕯 candle 🧹 broom 🧽 sponge 🧺 basket"
    " 📺 television 📻 radio ⏰ clock 💡 lamp",
    "school": "📷 camera ✏ pencil 📓 notebook ✉ envelope 📦 box 📰 newspaper 📅 calendar 🧭 compass"
    " 🔬 microscope 🔭 telescope 🌡 thermometer 🧠 brain",
    "clothes": "👑 crown 👗 dress 👖 jeans 🧦 socks 🧤 gloves 🧥 coat 💍 ring ☂ umbrella 🎩 hat 🎀 ribbon",
}  # fmt: skip
"""Each group as emoji and name in turn. What is absent is asked for half the time from a group that is there."""


@dataclass(frozen=True)
class Kind:
    """One kind of thing: its name, its emoji and its group."""

    name: str
    emoji: str
    group: str

    @property
    def some(self) -> str:
        """How one says that it is there: "a cat", "an apple", "some socks"."""
        if self.name in WITHOUT_ARTICLE:
            return f"some {self.name}"
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


WITHOUT_ARTICLE = {"jeans", "socks", "gloves", "bread", "coral", "fire", "cheese", "dice"}

KINDS: tuple[Kind, ...] = tuple(
    Kind(name, emoji, group)
    for group, listed in GROUPS.items()
    for emoji, name in zip(listed.split()[::2], listed.split()[1::2], strict=True)
)
