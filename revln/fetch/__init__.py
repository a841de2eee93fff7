"""Fetch a URL that a stranger gave us, without becoming the stranger's hand inside our network.

The address that was checked is the address that is dialled: names are resolved here, once for each hop, every address
of the answer is judged, and httpcore is given a network backend that dials those addresses and nothing else. The URL's
name still goes into the Host header, the TLS greeting and the certificate check.

httpcore, not the httpx above it: httpx logs every URL with its query at INFO, reads proxies and netrc unless told not
to, and times each read but not the whole, so a server that sends a byte every nine seconds holds a thread for days.
"""

from revln.fetch.addresses import address_refusal
from revln.fetch.fetcher import FetchPolicy, UrlFetcher
from revln.fetch.poster import Answer, UrlPoster, postable
from revln.fetch.retry_after import seconds_asked

__all__ = ["Answer", "FetchPolicy", "UrlFetcher", "UrlPoster", "address_refusal", "postable", "seconds_asked"]
