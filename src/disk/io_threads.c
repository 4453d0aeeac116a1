/*
 * The thread pool: a queue, a few threads ("disk-io") that run requests with blocking calls, and a list of
 * what is done. Threads end when `ending` is set and the condition signalled, in disk_pool_free.
 */
#include "disk/io_engine.h"

#include "base/error.h"
#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define POOL_THREADS_MAX 4
#define ZEROES_SIZE      (256 * 1024)
#define ZEROES_ALIGN     4096 /* enough for direct I/O */

struct request_list {
    struct disk_request *first;
    struct disk_request **last; /* where the next one is linked */
};

struct disk_pool {
    int fd;
    int event_fd;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t work;
    struct request_list todo;
    struct request_list done;
    unsigned todo_count;
    unsigned idle;
    unsigned thread_count;
    bool ending;
    struct thread threads[POOL_THREADS_MAX];
};

static void list_init(struct request_list *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static void list_add(struct request_list *list, struct disk_request *request)
{
    request->next = NULL;
    *list->last = request;
    list->last = &request->next;
}

static struct disk_request *list_take(struct request_list *list)
{
    struct disk_request *request = list->first;

    if (!request)
        return NULL;
    list->first = request->next;
    if (!list->first)
        list->last = &list->first;
    return request;
}

static int run_transfer(int fd, struct disk_request *request)
{
    ssize_t done;

    for (;;) {
        if (request->op == DISK_OP_READ)
            done = preadv(fd, request->iov, (int)request->iov_count, (off_t)request->offset);
        else
            done = pwritev2(fd, request->iov, (int)request->iov_count, (off_t)request->offset,
                            request->durable ? RWF_DSYNC : 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        if (done == 0)
            return -EIO; /* the file ends where the disk does not */
        if (disk_request_advance(request, (size_t)done))
            return 0;
    }
}

/* For file systems that cannot zero a range by themselves. */
static int write_zeroes(int fd, const struct disk_range *range)
{
    void *zeroes = aligned_alloc(ZEROES_ALIGN, ZEROES_SIZE);
    uint64_t done = 0;
    int result = zeroes ? 0 : -ENOMEM;

    if (zeroes)
        memset(zeroes, 0, ZEROES_SIZE);
    while (result == 0 && done < range->length) {
        uint64_t left = range->length - done;
        ssize_t wrote =
            pwrite(fd, zeroes, left < ZEROES_SIZE ? left : ZEROES_SIZE, (off_t)(range->offset + done));

        if (wrote > 0)
            done += (uint64_t)wrote;
        else if (wrote == 0)
            result = -EIO;
        else if (errno != EINTR)
            result = -errno;
    }
    free(zeroes);
    return result;
}

static int run_range(int fd, enum disk_op op, const struct disk_range *range)
{
    bool punch = op == DISK_OP_DISCARD || range->unmap;
    int mode = FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    int result;

    if (!range->length)
        return 0;
    do
        result = fallocate(fd, mode, (off_t)range->offset, (off_t)range->length) < 0 ? -errno : 0;
    while (result == -EINTR);
    if (result != -EOPNOTSUPP && result != -ENOSYS)
        return result;
    return op == DISK_OP_DISCARD ? 0 /* a hint */ : write_zeroes(fd, range);
}

static int run_request(int fd, struct disk_request *request)
{
    int result = 0;

    switch (request->op) {
    case DISK_OP_READ:
    case DISK_OP_WRITE:
        return run_transfer(fd, request);
    case DISK_OP_FLUSH:
        return fdatasync(fd) < 0 ? -errno : 0;
    case DISK_OP_DISCARD:
    case DISK_OP_WRITE_ZEROES:
        for (unsigned i = 0; i < request->range_count && result == 0; i++)
            result = run_range(fd, request->op, &request->ranges[i]);
        if (result == 0 && request->durable && fdatasync(fd) < 0)
            result = -errno;
        return result;
    }
    return -EINVAL;
}

static void *pool_main(void *argument)
{
    struct disk_pool *pool = argument;

    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct disk_request *request = list_take(&pool->todo);

        if (!request) {
            if (pool->ending)
                break;
            pool->idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->idle--;
            continue;
        }
        pool->todo_count--;
        pthread_mutex_unlock(&pool->lock);
        request->result = run_request(pool->fd, request);
        pthread_mutex_lock(&pool->lock);
        list_add(&pool->done, request);
        (void)eventfd_write(pool->event_fd, 1);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int disk_pool_new(struct disk_pool **out, int fd, int event_fd, struct ferry_error *err)
{
    struct disk_pool *pool = calloc(1, sizeof(*pool));

    if (!pool)
        return error_set(err, -ENOMEM, "out of memory while setting up disk I/O");
    pool->fd = fd;
    pool->event_fd = event_fd;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    list_init(&pool->todo);
    list_init(&pool->done);
    *out = pool;
    return 0;
}

void disk_pool_free(struct disk_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->ending = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        thread_join(&pool->threads[i]);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void disk_pool_submit(struct disk_pool *pool, struct disk_request *request)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->todo_count >= pool->idle && pool->thread_count < POOL_THREADS_MAX &&
        thread_start(&pool->threads[pool->thread_count], THREAD_IO, "disk-io", pool_main, pool, NULL) == 0)
        pool->thread_count++;
    if (pool->thread_count) {
        list_add(&pool->todo, request);
        pool->todo_count++;
        pthread_cond_signal(&pool->work);
    } else {
        request->result = -EAGAIN;
        list_add(&pool->done, request);
        (void)eventfd_write(pool->event_fd, 1);
    }
    pthread_mutex_unlock(&pool->lock);
}

struct disk_request *disk_pool_reap(struct disk_pool *pool)
{
    struct disk_request *request;

    pthread_mutex_lock(&pool->lock);
    request = list_take(&pool->done);
    pthread_mutex_unlock(&pool->lock);
    return request;
}
