"""Tag texts: python predict.py RUN [FILE]. See --help."""

from hanzoo.start import start

if __name__ == "__main__":
    start("predict")
