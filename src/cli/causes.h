/* What a class of failure (`cause` in a record) says to an operator: what it was about, and where to look. */
#ifndef FERRY_CLI_CAUSES_H
#define FERRY_CLI_CAUSES_H

/* "the network: slow, gone, …"; NULL for one that is not known (of a newer host). */
const char *cause_words(const char *cause);
/* What can be done about it; NULL when there is nothing to be said. */
const char *cause_advice(const char *cause);

#endif
