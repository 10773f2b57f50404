"""Train a recipe: python train.py RECIPE [key.sub=value ...]. See --help."""

from hanzoo.start import start

if __name__ == "__main__":
    start("train")
