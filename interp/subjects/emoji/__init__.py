"""emoji-vlm: a small vision-language model for anyone to try, and the rendered scenes that it was trained on.

`kinds` are what there is to see, `sprites` how it looks, `scenes` where it lies, `questions` what can be asked of it,
and `held_out` what training never saw. `tower`, `projector` and `answering` are the three stages of training, which
`python -m interp.subjects.emoji` runs one after the other; `model` puts the trained parts into transformers' LLaVA.
"""
