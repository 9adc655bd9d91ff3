"""`python -m trainer evaluate`: how good arms are on events they have not learned, ranked among all items.

events ▸ protocols (what is learned, what is foreseen) ▸ arms ▸ metrics ▸ report
"""
