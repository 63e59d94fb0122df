"""course_lib: the small real library under *LLM From Scratch*.

One idea a file; a file imports only files above it in this list:

    errors  files  bpe  pieces  tokenizer  positions  attention  layers  gpt  sizing  interop
    atlas  data  shards  optim  train  parallel  sampling  generate  chat  evaluate  sft  reward
    ppo  grpo  dpo  lora  finetune  presets  runs  recipes  distributed  chatloop  studies
    plots  widgets  checks  __main__

Start reading at `gpt.py`; run everything with `python -m course_lib train`.
"""

__version__ = "0.1.0"
