"""256 short, distinct English words, one per byte value; the order is part of the format."""

_TEXT = """
acid acorn actor adobe agent alarm album alley amber angle ankle apple apron arena arrow aspen atlas attic
audio autumn awning bacon badge bagel baker ballot bamboo banjo barley basin beacon beaver bench berry birch
bison blanket bonus border bottle boulder bracket branch bread breeze brick bridge bronze bucket button cabin
cactus camel candle canoe canyon carbon carpet cedar cello chalk cherry cider cinema circle cliff clock clover
cobalt coffee comet copper coral cotton cradle crater crayon cricket crystal curtain cymbal daisy dancer
decade delta denim desert diamond dinner dolphin donkey dragon drawer eagle easel echo eclipse elbow ember
engine envoy fabric falcon farmer feather fennel ferry fiber fiddle filter finger flame flute forest fossil
fountain fox galaxy garden garlic ginger glacier globe glove goblet granite grape gravel guitar hammer harbor
harvest hazel helmet heron hollow honey horizon hotel igloo index island ivory jacket jaguar jasmine jigsaw
jungle kayak kernel kettle kitten ladder lagoon lantern lemon lentil lilac linen lizard lobster lotus magnet
mango maple marble meadow melon mirror mitten monkey mosaic motor muffin museum napkin nectar nickel noodle
nutmeg oasis ocean olive onion opera orbit orchid otter oyster paddle palace panda paper parrot pebble pencil
pepper piano pigeon pillow planet plaster plum pocket poplar potato prism puzzle quartz quill rabbit radio
raven ribbon river rocket saddle salmon sandal saturn scarf shadow silver socket spider spiral spruce squid
stable statue summit sunset tablet tailor teapot temple thimble thunder ticket tiger timber toast tomato torch
tower tractor trumpet tulip tunnel turtle umbrella valley vanilla velvet violin walnut
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
