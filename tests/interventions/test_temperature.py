from interp import Temperature
EXAMPLES = [Temperature(), Temperature(temperature=0.4, queries=(3, 6, 9, 11))]
