"""What the page says around its numbers."""

SUMMARY = """\
<p>Times as fast as <code>torch.nn</code>: above 1 rnnfast is faster; below 1, in red, slower. A
number is the ratio of two medians; in small letters below it stand the 20th and 80th percentile of
the ratios of blocks that ran side by side. A mean is over the rows of its line, however different
their sizes.</p>
"""

MODES = {True: "As CUDA graphs", False: "Eager calls"}

BOUNDS = """\
<p>The hard bound is every product at the processor's peak, each step no shorter than reading w_hh
once from the cache that holds it. The practical ceiling is made of what the parts take that were
measured by themselves. For small layers the hard bound lies beyond the right end of the figure.</p>
"""

STEPS = {
    False: """\
<p>One step that carries the state, as generation and reinforcement learning take them, with all
that Python does in it: the smaller the layer, the more of it is the cost of a call.</p>
""",
    True: """\
<p>One step that carries the state, of 32 in one CUDA graph: nothing of the host.</p>
""",
}

SWEEPS = """\
<p>One layer, of which one size at a time is varied, or the number of threads: milliseconds of a
whole call. H changes together with I. Whiskers: 20th to 80th percentile.</p>
"""

MEMORY = """\
<p>The most that a process holds during its first pass, above what it held before: outputs, what
training keeps, scratch, all that an allocator takes; weights and inputs are there before. Each
number is the median of several new processes, the range below it that of all. What code and
threads take comes before, in a small layer's pass, as far as it can: a MiB means nothing.</p>
"""

OVERHEAD = """\
<p>Eager calls of layers and cells that have next to nothing to compute, under
<code>torch.inference_mode()</code>, with all that Python does in them. A frozen layer is one after
<code>rnnfast.freeze</code>, beside torch.nn's as it is. A cell takes one step.</p>
"""

COMPILE = """\
<p>Seconds until a layer compiled by <code>torch.compile</code> gives its first result, in a process
with empty caches; each measured once. torch.nn's layer is compiled step by step.</p>
"""

METHOD = """\
<p>Both sides run in one process and take turns in short blocks, whose order turns round after every
round; a row's time is the median of its blocks. Before anything is timed, outputs, states and, in
training, gradients are compared with float64. <em>Inference</em> is a call under
<code>torch.inference_mode()</code>, <em>training</em> a call and the backward pass to every
parameter. The errors in the tables are the largest of all values, relative to the largest number of
their tensor. Where <code>load</code>, the number of busy processes before the run, is not near
zero, others used the machine. A plus sign after a commit: with files changed since.</p>
<p>The noise that is shown is that of the blocks of one run. Another run may differ by more, as may
another machine of the same name.</p>
"""

REPEAT = """\
<pre>make bench                                     # this machine's CPU; says what moved
make bench-peers                               # beside oneDNN, ONNX Runtime, OpenVINO, JAX
make gpu-check                                 # this machine's GPU
.venv/bin/python -m benchmarks.steps           # single steps
.venv/bin/python -m benchmarks.sweeps          # T, B, H, threads, memory, smallest calls
.venv/bin/python -m benchmarks.compile_times   # time to compile
.venv/bin/python -m benchmarks.convergence     # training beside torch.nn
.venv/bin/python -m benchmarks.report --html   # this page, from benchmarks/results</pre>
"""
