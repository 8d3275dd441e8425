"""The vLLM engine: the trials of `tasks.engines.interface`, run by vLLM at its own speed.

    engine      trials in, checked results out
    driver      requests in flight, fed to vLLM and collected in packs
    results     what a finished trial left, checked and labelled
    settings    vLLM's arguments and environment
    requests    a trial as a vLLM request: its plain-data instructions and the salt of its cached blocks
    slots       instructions of the requests in flight, and the plan of one forward pass made from them (numpy)
    state       what a worker holds on its device: edits, counts, sampling (torch)
    captures    what a worker records in the same pass (torch)
    dictionaries, model_folder, supported   files of whole SAEs; what is known of a model before it is loaded
    internals   all contact with vLLM's internals; the only file that imports vllm when it is imported

Everything but `internals` imports without vLLM. Edits fire in a custom operation at the end of every decoder layer,
which torch.compile and CUDA graphs keep, and which reads persistent buffers; so one compiled model runs any mix of
trials.
"""
