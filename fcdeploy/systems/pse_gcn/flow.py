def cluster(run): pass
