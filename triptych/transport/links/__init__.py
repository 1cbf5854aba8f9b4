"""Links: connections of two actors that carry bytes one way, producer to consumer, over NCCL or Gloo.

`consumer_link` and `producer_links` are the two ends; the stream OpenLink between them is the link's life: it agrees
where to meet, says which transfer comes next, and its end, for whatever reason, ends the link.
"""
