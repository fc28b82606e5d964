#!/usr/bin/env python3
"""Makes data/shop.json, the catalogue of the shop world: 12 categories of 30 products each.

    python3 scripts/make_shop.py > data/shop.json

Everything is invented here and a function of the seed below. A product has a title, a price, a value for each of its
category's two options (told in the text) and two or three of its category's six attributes. Attributes are never named in
the text: each shows as one of a few wordings, and titles and wordings vary, so that a reader must understand rather than
match words. Within a category no two products have the same price.
"""

import json
import random

SEED = 20261
PRODUCTS = 30

# category: nouns, ((option, 6 values), (option, 4 values)), cheapest and dearest price, {attribute: wordings}
CATEGORIES = {
    "area rugs": (
        ["rug", "area rug", "carpet", "floor rug"],
        (("color", ["grey", "navy", "ivory", "rust", "sage", "black"]),
         ("size", ["2 x 3 ft", "4 x 6 ft", "5 x 8 ft", "8 x 10 ft"])),
        (19, 240),
        {
            "easy to clean": ["goes into the washing machine", "wipes clean with a damp cloth", "spills come right out"],
            "non-slip": ["rubber dots underneath keep it in place", "stays put on bare floors", "grippy backing"],
            "soft": ["plush under bare feet", "cozy deep pile", "feels like a lamb's coat"],
            "for outdoors": ["made for patio and porch", "takes sun and rain", "weatherproof fibers"],
            "handmade": ["knotted by artisans", "woven on a hand loom", "no two pieces are alike"],
            "natural material": ["pure wool", "braided jute", "undyed cotton"],
        },
    ),
    "desk lamps": (
        ["desk lamp", "table lamp", "reading light", "study lamp"],
        (("color", ["white", "black", "brass", "mint", "walnut", "red"]),
         ("plug", ["US", "EU", "UK", "USB-C"])),
        (15, 130),
        {
            "dimmable": ["turn it down for the evening", "ten levels of brightness", "slide to adjust the glow"],
            "gentle on the eyes": ["no flicker, no glare", "a diffuser spares tired eyes", "soft even light for long nights"],
            "saves power": ["sips 6 watts", "LED that runs for pennies", "rated A for energy"],
            "adjustable arm": ["bends and swivels where you need it", "gooseneck", "two joints reach across the desk"],
            "charges a phone": ["wireless charging in the base", "a spare port for your mobile", "lay your phone on its foot"],
            "touch control": ["a tap switches it on", "no buttons, just stroke the base", "reacts to your fingertip"],
        },
    ),
    "backpacks": (
        ["backpack", "daypack", "rucksack", "school bag"],
        (("color", ["olive", "black", "blue", "burgundy", "sand", "teal"]),
         ("volume", ["15 l", "20 l", "28 l", "35 l"])),
        (24, 180),
        {
            "waterproof": ["keeps books dry in a downpour", "roll-top with taped seams", "shrugs off rain"],
            "fits a laptop": ["padded sleeve for 15 inches", "your computer rides in its own pocket", "notebook compartment"],
            "light": ["weighs less than a pound", "you hardly notice it", "cloth as thin as a sail"],
            "comfortable": ["wide padded straps", "an airy mesh back", "a waist belt takes the load"],
            "theft-proof": ["zippers hide against your back", "cut-resistant lining", "lockable main pocket"],
            "recycled": ["was once 22 plastic bottles", "spun from old fishing nets", "made of post-consumer fabric"],
        },
    ),
    "headphones": (
        ["headphones", "earphones", "headset", "over-ears"],
        (("color", ["black", "white", "silver", "rose", "blue", "green"]),
         ("connection", ["Bluetooth", "jack 3.5 mm", "USB-C", "2.4 GHz dongle"])),
        (18, 320),
        {
            "cancels noise": ["the train falls silent", "mutes the office around you", "active quiet at a press"],
            "long battery life": ["50 hours between charges", "plays all week", "charge it on Sundays only"],
            "for sports": ["sweat does no harm", "stays on during sprints", "ear hooks for runners"],
            "good microphone": ["callers hear you, not the wind", "boom arm for clear speech", "broadcast-grade voice pickup"],
            "foldable": ["collapses into a small pouch", "hinges flat for travel", "packs down to a fist"],
            "for children": ["caps the volume for young ears", "sized for small heads", "with stickers to decorate"],
        },
    ),
    "coffee": (
        ["coffee", "coffee beans", "house blend", "roast"],
        (("origin", ["Ethiopia", "Colombia", "Brazil", "Sumatra", "Guatemala", "Kenya"]),
         ("bag", ["250 g", "500 g", "1 kg", "2 kg"])),
        (7, 60),
        {
            "organic": ["grown without pesticides", "certified from clean farms", "no chemicals on the field"],
            "fair trade": ["farmers get a fixed fair price", "bought straight from the cooperative", "pays growers well"],
            "decaffeinated": ["for the late evening", "sleep is safe", "the caffeine was washed out"],
            "dark": ["roasted until nearly black", "smoky and bold", "bittersweet like cocoa"],
            "fruity": ["tastes of blueberry", "bright like citrus", "notes of ripe cherry"],
            "low in acid": ["kind to the stomach", "smooth without a bite", "mellow on sensitive bellies"],
        },
    ),
    "running shoes": (
        ["running shoes", "runners", "trainers", "road shoes"],
        (("color", ["black", "white", "orange", "navy", "lime", "grey"]),
         ("width", ["narrow", "regular", "wide", "extra wide"])),
        (45, 260),
        {
            "cushioned": ["lands like on clouds", "thick foam soaks up the road", "easy on the knees"],
            "for trails": ["lugs bite into mud", "rocks won't bruise your feet", "made for forest paths"],
            "fast": ["a carbon plate snaps you forward", "built for race day", "personal bests included"],
            "water-repellent": ["puddles stay outside", "membrane against wet socks", "dry feet in November"],
            "breathable": ["open mesh lets heat out", "cool even in July", "air flows through the upper"],
            "vegan": ["no animal glue or leather", "made entirely without animals", "plant-based throughout"],
        },
    ),
    "kitchen knives": (
        ["chef's knife", "kitchen knife", "cook's blade", "santoku"],
        (("handle", ["oak", "black resin", "steel", "olive wood", "blue resin", "walnut"]),
         ("blade", ["12 cm", "16 cm", "20 cm", "24 cm"])),
        (16, 210),
        {
            "stays sharp": ["keeps its edge for a year", "rarely meets a whetstone", "hardened to 62 HRC"],
            "dishwasher-safe": ["rinse it or let the machine do it", "survives every wash program", "no hand washing needed"],
            "well balanced": ["sits weightless in the hand", "its center lies at your finger", "does not tire the wrist"],
            "rust-free": ["never stains", "high-chrome steel", "lemon juice leaves no mark"],
            "forged by hand": ["hammered in a small smithy", "a master's stamp on each", "folded by one smith"],
            "with a sheath": ["comes with a guard", "travels in its own cover", "a magnetic case is included"],
        },
    ),
    "water bottles": (
        ["water bottle", "drinking bottle", "flask", "canteen"],
        (("color", ["steel", "black", "coral", "sky blue", "forest", "violet"]),
         ("capacity", ["350 ml", "500 ml", "750 ml", "1 l"])),
        (9, 55),
        {
            "keeps cold": ["ice survives until evening", "double wall with vacuum", "cool after a day in the sun"],
            "leak-proof": ["hold it upside down", "safe beside your laptop", "a gasket that never drips"],
            "easy to clean": ["wide mouth for the brush", "every part unscrews", "put it in the dishwasher"],
            "light": ["a mere 90 grams", "you will forget you carry it", "thin-walled titanium"],
            "free of plastic": ["steel and cork only", "glass inside a cotton sleeve", "no polymers touch your drink"],
            "with a straw": ["sip without tilting", "flip up and drink", "a built-in tube for cyclists"],
        },
    ),
    "bed sheets": (
        ["sheet set", "bed sheets", "bedding", "fitted sheet"],
        (("color", ["white", "sand", "slate", "blush", "olive", "navy"]),
         ("size", ["single", "double", "queen", "king"])),
        (22, 190),
        {
            "cooling": ["no more night sweats", "stays cool to the touch", "draws heat away"],
            "wrinkle-free": ["smooth straight from the dryer", "leave the iron in the cupboard", "never creases"],
            "soft": ["like sleeping in silk", "brushed until velvety", "gets cuddlier with each wash"],
            "for allergies": ["dust mites find no home", "dermatologists approve", "no irritating dyes"],
            "deep pockets": ["fits mattresses up to 18 inches", "corners never pop off", "wraps tall toppers"],
            "organic cotton": ["grown without pesticides", "certified clean fiber", "from rain-fed fields"],
        },
    ),
    "board games": (
        ["board game", "family game", "strategy game", "tabletop game"],
        (("theme", ["pirates", "space", "farming", "trains", "castles", "jungle"]),
         ("players", ["2", "2 to 4", "3 to 6", "up to 8"])),
        (12, 95),
        {
            "quick": ["done in twenty minutes", "fits a lunch break", "ends before anyone yawns"],
            "cooperative": ["all win or lose together", "you fight the board, not each other", "team up to survive"],
            "easy to learn": ["rules on a single page", "start within five minutes", "explained in one breath"],
            "for children": ["ages 5 and up", "no reading needed", "chunky pieces for small hands"],
            "deep": ["reveals itself after ten plays", "every move has consequences", "a feast for planners"],
            "travel-sized": ["fits a coat pocket", "magnetic pieces for the train", "plays on an airplane tray"],
        },
    ),
    "garden chairs": (
        ["garden chair", "patio chair", "deck chair", "lounge chair"],
        (("color", ["teak", "white", "anthracite", "green", "terracotta", "yellow"]),
         ("set", ["1 piece", "2 pieces", "4 pieces", "6 pieces"])),
        (29, 330),
        {
            "foldable": ["collapses flat for winter", "hangs on a nail when not in use", "opens in one move"],
            "weatherproof": ["may stay out all year", "frost and rain do nothing", "UV-proof finish"],
            "comfortable": ["a seat to fall asleep in", "curved for your back", "thick cushions included"],
            "stackable": ["pile them up in a corner", "six take the room of one", "nests on its siblings"],
            "holds heavy loads": ["tested to 400 pounds", "sturdy frame that never wobbles", "built like a bridge"],
            "sustainable wood": ["from replanted forests", "reclaimed barn timber", "certified plantation teak"],
        },
    ),
    "face creams": (
        ["face cream", "moisturizer", "day cream", "skin lotion"],
        (("scent", ["none", "rose", "citrus", "lavender", "cucumber", "vanilla"]),
         ("size", ["30 ml", "50 ml", "75 ml", "100 ml"])),
        (8, 90),
        {
            "for sensitive skin": ["calms redness", "tested on the easily irritated", "no stinging, no itching"],
            "with sun protection": ["SPF 30 built in", "blocks UV rays", "wear it to the beach"],
            "anti-aging": ["smooths fine lines", "with retinol for the night", "firms within weeks"],
            "vegan": ["free of beeswax and lanolin", "nothing from animals", "plant oils only"],
            "light": ["sinks in within seconds", "leaves no film", "a gel that weighs nothing"],
            "very rich": ["for winters in the mountains", "a balm for parched cheeks", "thick with shea butter"],
        },
    ),
}

BRANDS = ["Alder", "Brightwell", "Corvo", "Dunmore", "Elva", "Fjord & Fell", "Gannet", "Harrow", "Iona", "Juniper Lane",
          "Kestrel", "Lumen", "Marlow", "Nordbo", "Osprey Bay", "Pell", "Quill", "Rowan", "Saltmarsh", "Tamar"]


def title(draw, noun, wordings):
    """A brand, the noun and the wordings, in one of several forms."""
    brand = draw.choice(BRANDS)
    form = draw.randrange(4)
    if form == 0:
        return f"{brand} {noun} - {', '.join(wordings)}"
    if form == 1:
        return f"{noun.capitalize()} by {brand}: {' and '.join(wordings)}"
    if form == 2:
        return f"{wordings[0].capitalize()}: {brand} {noun} ({'; '.join(wordings[1:])})"
    return f"{brand} {noun.capitalize()} | {' | '.join(wordings)}"


def products(draw, category):
    nouns, options, (low, high), attributes = CATEGORIES[category]
    prices = draw.sample(range(low * 2, high * 2), PRODUCTS)
    for price in prices:
        has = sorted(draw.sample(range(len(attributes)), draw.choice([2, 2, 3])))
        wordings = [draw.choice(list(attributes.values())[i]) for i in has]
        draw.shuffle(wordings)
        yield {
            "title": title(draw, draw.choice(nouns), wordings),
            "cents": price // 2 * 100 + (99 if price % 2 else 49),
            "options": [draw.randrange(len(values)) for _, values in options],
            "attributes": has,
        }


def main():
    draw = random.Random(SEED)
    lines = []
    for category, (_, options, _, attributes) in CATEGORIES.items():
        wordings = [w for of in attributes.values() for w in of]
        assert len(attributes) == 6 and len(set(wordings)) == len(wordings)
        assert [len(values) for _, values in options] == [6, 4]
        head = json.dumps({"name": category, "attributes": list(attributes),
                           "options": [{"name": name, "values": values} for name, values in options]},
                          ensure_ascii=False)
        rows = ",\n  ".join(json.dumps(p, ensure_ascii=False) for p in products(draw, category))
        lines.append(f'{head[:-1]}, "products": [\n  {rows}\n]}}')
    print("[\n" + ",\n".join(lines) + "\n]")


if __name__ == "__main__":
    main()
