"""Does a score of ruggedness tell which network is hard to train?"""
