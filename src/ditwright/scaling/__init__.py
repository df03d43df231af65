"""The scaling study: a ladder of networks from one dial, trained alike, and the law that their quality follows.

study.py    what a study is, as plain data, and those that come with the package
plan.py     its runs, and what each costs before it is started
probe.py    how fast this machine trains them
work.py     doing the runs: any number of processes, resumable, the held-out one last
score.py    samples of a finished run against real pictures
results.py  what the finished runs wrote, read again
law.py      y = a x^-b + c, robust, with bootstrap intervals
transfer.py whether one learning rate serves every width
fit.py      the laws of a study, compute-optimal sizes, the prediction and its miss
canvas.py   what all figures share
figures.py  the figures
rows.py     the tables
report.py   one page of them
"""
