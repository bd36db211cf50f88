"""How good samples are: distances between sets of images in the features of a named network, and
the protocol.
"""
