"""The trainer and what it keeps: checkpoints, logs, health. It knows the contract of methods and no
method.
"""
