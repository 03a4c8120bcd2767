"""The life of one running answer: a relay drives its session and carries out its effects.

Reading order: `relay`, `client` (one client's side), `attempts` (which agent is asked), `writers`
(effects to bytes), `moments` (what others are told), `running` (every relay that runs).
"""
