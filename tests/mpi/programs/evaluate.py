"""`python -m dppo.evaluate` on ranks."""

from __future__ import annotations

import sys

from dppo.evaluate import main

sys.exit(main())
