"""The mathematics: processes, predictions, times, solvers and samplers. Imports torch and nothing
of fewstep's rest.
"""
