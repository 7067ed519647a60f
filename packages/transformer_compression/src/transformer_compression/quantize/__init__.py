"""Quantization: rounding (RTN, GPTQ, AutoRound-style), equivalent transforms (SmoothQuant, AWQ),
learned clipping (OmniQuant-style), training with quantization (LSQ), and vision PTQ.

    outcome = gptq_language(model, Data(batches), bits=4, group=64)
"""
