"""How likely does a score-based model reproduce a training record?"""
