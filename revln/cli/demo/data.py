"""What the demonstration works on: the photographs that scikit-image's wheel carries, and a memory of sentences."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from revln.errors import StartupError

__all__ = ["SENTENCES", "Picture", "Plan", "from_folder", "samples"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})

# File in skimage/data → title. Drawings, diagrams and slides for the microscope are left out.
SAMPLES = {
    "astronaut.png": "Astronaut",
    "chelsea.png": "Chelsea the cat",
    "coffee.png": "Coffee",
    "camera.png": "Cameraman",
    "rocket.jpg": "Rocket",
    "motorcycle_left.png": "Motorcycle",
    "hubble_deep_field.jpg": "Hubble deep field",
    "moon.png": "Moon",
    "coins.png": "Greek coins",
    "brick.png": "Bricks",
    "grass.png": "Grass",
    "gravel.png": "Gravel",
}
# The other eye of a stereo camera: nearly the motorcycle's picture, and not in the collection.
SAMPLE_QUERY = ("motorcycle_right.png", "Motorcycle, seen by the camera's other eye")
# Things that the shipped model finds; it is small, and errs on much else.
SAMPLE_TEXTS = ("a brown tabby cat", "a cup of coffee on a table", "a man with a camera")
FOLDER_TEXTS = ("people outside", "an animal", "something to eat or drink")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file and what to call it."""

    id: str
    title: str
    path: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What is indexed, and what is searched for."""

    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    query: Picture
    source: str


def samples() -> Plan:
    """The sample photographs; read as files, so scikit-image itself is not imported."""
    folder = Path(str(files("skimage") / "data"))
    pictures = tuple(Picture(Path(name).stem, title, folder / name) for name, title in SAMPLES.items())
    name, title = SAMPLE_QUERY
    missing = [picture.path.name for picture in pictures if not picture.path.is_file()]
    if missing:
        raise StartupError(f"scikit-image here lacks {', '.join(missing)}; give a folder of your own: --images FOLDER.")
    query = Picture(Path(name).stem, title, folder / name)
    return Plan(pictures, SAMPLE_TEXTS, query, "scikit-image's sample photographs")


def from_folder(folder: Path, limit: int) -> Plan:
    """The user's own pictures, by name; the last one is kept out of the collection and searched with.

    Raises:
        StartupError: there are fewer than two.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())[
        : limit + 1
    ]
    if len(found) < 2:
        raise StartupError(f"{folder} holds {len(found)} pictures ({', '.join(sorted(SUFFIXES))}); two are needed.")
    pictures = [Picture(str(path.relative_to(folder))[:512], path.stem, path) for path in found]
    return Plan(tuple(pictures[:-1]), FOLDER_TEXTS, pictures[-1], str(folder))


# What the captioner may remember: everyday scenes, written for this demonstration. A few of them touch on each
# photograph; most touch on none, so that retrieval has something to leave out.
SENTENCES = tuple(
    """
A woman smiles at the camera in front of a flag.
An astronaut in an orange suit poses for a portrait.
A pilot stands beside a small airplane.
A man in a uniform salutes during a ceremony.
A woman wearing a helmet sits in a cockpit.
A girl in a white dress holds a bunch of flowers.
Two women laugh while sharing an umbrella.
An old man with a beard reads a newspaper on a bench.
A baby sleeps in a crib with a stuffed bear.
A child blows out the candles on a birthday cake.
A boy in a striped shirt eats an ice cream cone.
A man in a black coat looks through a camera on a tripod.
A photographer takes a picture of a skyline.
A man films a football match from the side of the field.
A tourist takes a photo of a famous tower.
A group of friends take a picture of themselves on a bridge.
A man plays the guitar on a street corner.
A band performs on a stage under coloured lights.
A woman sings into a microphone.
A crowd watches a parade from the sidewalk.
A brown tabby cat looks straight into the camera.
A kitten sleeps on a folded blanket.
A black cat sits on a window sill and looks outside.
An orange cat lies on a couch next to a remote control.
A cat drinks from a bowl of milk.
A brown dog runs through shallow water with a stick.
Two dogs play with a ball on the grass.
A white dog jumps over a bar at a show.
A small dog wears a red sweater in the snow.
A dog sticks its head out of a car window.
A black and white dog catches a frisbee in the air.
A horse stands in a green field behind a fence.
A woman rides a brown horse along the beach.
A cowboy holds on to a bucking horse.
A herd of cows grazes on a hillside.
Sheep walk along a narrow country road.
An elephant sprays water over its back.
A giraffe eats leaves from a tall tree.
Two zebras stand close together on a dry plain.
A brown bear wades in a river.
A bird perches on a thin branch.
Seagulls fly above a fishing boat.
A duck swims across a quiet pond.
A parrot with green feathers sits on a man's shoulder.
A cup of coffee with a spoon on a red saucer.
A white cup of espresso stands on a wooden table.
A man pours hot tea into a glass.
A plate of pasta with tomatoes and basil.
A pizza with cheese and mushrooms on a metal tray.
A sandwich and a bowl of soup on a tray.
A chef cuts vegetables on a wooden board.
A bowl of oranges and bananas on a kitchen counter.
A slice of chocolate cake with a fork on a plate.
A table set with wine glasses and candles.
A family eats dinner around a large table.
People wait in line at a food truck.
A rocket stands on the launch pad at dusk.
A rocket lifts off with a trail of white smoke.
A tall tower is lit by floodlights at night.
Construction cranes rise above a half-finished building.
A lighthouse stands on a rock by the sea.
A large passenger jet takes off from a runway.
A helicopter hovers above a mountain.
Hot air balloons float over a valley in the morning.
A crowd looks up at fireworks in the night sky.
City lights are reflected in a river at night.
A red motorcycle is parked inside a garage.
A man in a leather jacket rides a motorcycle on a winding road.
A motocross rider jumps over a dirt hill.
Two motorcycles are parked in front of a shop.
A mechanic repairs an engine in a workshop.
Tools hang on the wall above a workbench.
A man rides a bicycle down a steep trail.
Cyclists race through a crowded street.
A yellow taxi waits at a traffic light.
A red double-decker bus drives past a clock tower.
An old truck rusts in a field.
A train pulls into a station while people wait.
A boy rides a skateboard down a handrail.
A girl on roller skates turns in a parking lot.
Many stars and distant galaxies in a dark sky.
The night sky is full of stars above a mountain ridge.
A bright full moon rises over the desert.
The grey surface of the moon with craters.
A view of the earth from high above the clouds.
A telescope points at the sky from inside a dome.
Dark clouds gather over a wheat field.
Lightning strikes behind a row of houses.
Snow covers the roofs of a mountain village.
Sunlight falls through the trees of a forest.
Rows of old coins on a dark surface.
A pile of silver coins next to a wallet.
A collection of stamps in an open album.
Round buttons of many colours in a box.
A wall made of old bricks.
A brick sidewalk with leaves on it.
A stone path leads through a garden.
A man lays bricks at a building site.
Graffiti covers a concrete wall.
Short dry grass covers the ground.
A close view of green grass after the rain.
A man mows the lawn in front of his house.
Children roll down a grassy hill.
A field of yellow flowers under a blue sky.
Small grey stones cover the ground.
A close view of gravel on a path.
A toddler throws pebbles into a lake.
A man climbs a steep rock face with a rope.
Hikers with backpacks walk up a rocky trail.
A woman stands on a cliff and looks at the sea.
A surfer rides a large wave.
Two children build a castle of sand on the beach.
A man in a red kayak paddles through rapids.
People swim in an outdoor pool on a sunny day.
A sailing boat leans in the wind.
A fisherman holds up a large fish.
A snowboarder does a trick in the air.
Skiers ride up a mountain in a chair lift.
A hockey player shoots at the goal.
A soccer player in a red shirt kicks the ball.
A basketball player jumps to dunk the ball.
A tennis player reaches for a backhand.
A baseball player slides into the base.
A runner crosses the finish line with raised arms.
Girls in costumes dance on a stage.
An old woman sells fruit at a market.
A man sleeps on a bench in a train station.
A couple walks hand in hand along a river.
A bride and groom stand under an arch of flowers.
A man in a suit talks on a phone in the street.
People work on computers in a bright office.
A woman types on a laptop in a café.
A student writes on a blackboard.
Books fill the shelves of a small library.
A bed with white sheets stands by a window.
A bathroom with blue tiles and a round mirror.
A kitchen with wooden cupboards and a gas stove.
A living room with a leather sofa and a television.
A clock hangs on the wall of a railway station.
A vase of tulips stands on a table.
A street sign stands at an empty crossing.
A fire hydrant on a sidewalk in the rain.
A red umbrella lies open on the sand.
""".strip().splitlines()
)
