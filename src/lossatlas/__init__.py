"""Maps of neural-network loss landscapes: from one trained model to the phase diagram of a grid of them."""

from importlib.metadata import version

__version__ = version("lossatlas")
