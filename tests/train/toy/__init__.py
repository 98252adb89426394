"""A model family as a stranger would add it: four files and a row."""

from model.families import Family

ROW = Family(
    config="tests.train.toy.config:ToyConfig",
    network="tests.train.toy.net:ToyNet",
    losses="tests.train.toy.losses:GROUPS",
    labels=("tests.train.toy.labels:Apertures",),
)
