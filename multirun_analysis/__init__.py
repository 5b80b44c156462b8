"""Ranks the configurations of a sweep and compares the values of each hyper-parameter.

It reads run folders only and writes <sweep>/analysis/.
"""
