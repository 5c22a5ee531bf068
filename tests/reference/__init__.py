"""What is written from the program itself: command reference, man pages, shell completions.

``make reference`` writes the files anew; the tests hold them to the code.
"""
