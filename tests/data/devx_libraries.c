/* Stand-ins for libibverbs and libmlx5: the calls that epdoctor/probes/devx.py makes, declared by rdma-core's own
 * headers. A device does what its name says. Each open and close is a line of $STUB_LOG. */
#include <errno.h>
#include <infiniband/mlx5dv.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(offsetof(struct mlx5dv_context_attr, flags) == 0, "flags");
_Static_assert(offsetof(struct mlx5dv_context_attr, comp_mask) == 8, "comp_mask");
_Static_assert(sizeof(struct mlx5dv_context_attr) <= 24, "the probe gives 24 bytes");
_Static_assert(MLX5DV_CONTEXT_FLAGS_DEVX == 1, "flag");

#ifdef VERBS

static struct ibv_device devices[16], *list[17];

static void note(const char *what, const char *name)
{
	FILE *log = fopen(getenv("STUB_LOG"), "a");

	fprintf(log, "%s %s\n", what, name);
	fclose(log);
}

struct ibv_device **ibv_get_device_list(int *count)
{
	char *names = strdup(getenv("STUB_DEVICES"));

	*count = 0;
	for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) {
		strcpy(devices[*count].name, name);
		list[*count] = &devices[*count];
		++*count;
	}
	return list;
}

const char *ibv_get_device_name(struct ibv_device *device)
{
	return device->name;
}

struct ibv_context *stub_context(struct ibv_device *device, const char *how)
{
	struct ibv_context *context = calloc(1, sizeof(*context));

	context->device = device;
	note(how, device->name);
	return context;
}

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	if (strstr(device->name, "closed")) {
		errno = EACCES;
		return NULL;
	}
	return stub_context(device, "plain");
}

int ibv_close_device(struct ibv_context *context)
{
	note("close", context->device->name);
	return 0;
}

#else

struct ibv_context *stub_context(struct ibv_device *device, const char *how);

struct ibv_context *mlx5dv_open_device(struct ibv_device *device, struct mlx5dv_context_attr *attr)
{
	if (strstr(device->name, "crashes"))
		raise(SIGSEGV);
	while (strstr(device->name, "hangs"))
		pause();
	if (attr->flags != MLX5DV_CONTEXT_FLAGS_DEVX || attr->comp_mask) {
		errno = EPROTO;
		return NULL;
	}
	if (strstr(device->name, "closed") || strstr(device->name, "refused")) {
		errno = strstr(device->name, "closed") ? EACCES : EINVAL;
		return NULL;
	}
	return stub_context(device, "devx");
}

static void put(unsigned char *at, unsigned value)
{
	at[0] = value >> 8;
	at[1] = value;
}

int mlx5dv_devx_general_cmd(struct ibv_context *context, const void *in, size_t inlen, void *out, size_t outlen)
{
	/* QUERY_HCA_CAP, MLX5_CAP_ATOMIC, current */
	static const unsigned char wanted[16] = {1, 0, 0, 0, 0, 0, 0, 7};
	unsigned char *answer = out, *cap = answer + 16;
	const char *name = context->device->name;

	if (inlen != 16 || outlen != 16 + 0x8000 / 8 || memcmp(in, wanted, 16))
		return EPROTO;
	if (strstr(name, "mute"))
		return EOPNOTSUPP;
	if (strstr(name, "status")) {
		answer[0] = 3;
		memcpy(answer + 4, "\x00\x5a\x82\xce", 4);
		return 0;
	}
	put(cap + 0x90 / 8, strstr(name, "mode2") ? 3 : 15);
	put(cap + 0xb0 / 8, 0x1fc);
	put(cap + 0xd0 / 8, 12);
	put(cap + 0x280 / 8, 12);
	put(cap + 0x290 / 8, 4);
	put(cap + 0x2a0 / 8, 8);
	return 0;
}

#endif
