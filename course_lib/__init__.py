"""course_lib: the small real library under *LLM From Scratch*.

One idea a file; a file imports only files above it in this list:

    errors  files  bpe  pieces  tokenizer  positions  attention  layers  gpt  atlas  data  train
    sampling  generate  chat  evaluate  sft  reward  ppo  presets  runs  recipes  chatloop
    plots  widgets

Start reading at `gpt.py`; run everything with `python -m course_lib train`.
"""

__version__ = "0.1.0"
