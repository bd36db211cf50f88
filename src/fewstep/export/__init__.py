"""Models in the formats of other libraries; each export is loaded again and compared before it
counts.
"""
