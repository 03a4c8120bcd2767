"""A page for whoever runs the service: what runs, what ended and how, what is stored, how it all goes.

Reading order: `screens` (what every screen has), `doorway` (who may look), then a file for each screen.
`watched` is what the page looks at.
"""
