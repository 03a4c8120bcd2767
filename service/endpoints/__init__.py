"""One file per family of calls: what is asked, checked and answered over HTTP."""
