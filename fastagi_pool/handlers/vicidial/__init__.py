"""VICIdial's FastAGI logging daemon, anew: the same rows, the same commands, for the same calls.

The chapters, in the order in which a request meets them:

* ``call_log``: the handler; ``options``: what an operator may say.
* ``grammar``: what Asterisk sent, read; ``leg``: that request while it is served.
* ``start``: a START, with ``classification`` (which channel group, which number).
* ``hangup``: an END, with ``carrier`` (how the carrier ended the leg), ``disconnect`` (dials that failed),
  ``drop`` (who ended an answered call, and whether it was dropped), ``queuelog`` (QueueMetrics), ``altdial``
  (the lead's next number), ``limits`` (calls in 24 hours), ``quota``, ``monitors`` and ``khomp``.
* ``tables``: the database, with ``sql`` (all that is said to it), ``reading`` (what its answers mean) and
  ``rows`` (what the chapters know of it).
* ``astguiclient``: VICIdial's configuration file; ``logfiles``: the log files that its operators know.
"""
