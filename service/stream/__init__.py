"""The life of one running answer: what drives a session, and what carries out its effects."""
