"""The script that charges accounts in Redis, atomically and by Redis's own clock.

It decides as `services.slo.quotas.decide` does, which cannot run there; a test holds the two to the same answers for
random charges.
"""

from __future__ import annotations

CHARGE = """
local function number(text) local n = tonumber(text); if n and n == n and n < math.huge then return n end end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local router, lease, count_retry, max_debt = ARGV[1], ARGV[2] / 1000, tonumber(ARGV[3]), tonumber(ARGV[4])

local known = redis.pcall('ZADD', KEYS[1], now + lease, router)
if type(known) == 'table' then redis.call('DEL', KEYS[1]); redis.call('ZADD', KEYS[1], now + lease, router) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. string.format('%.17g', now + 2 * lease), '+inf')
redis.call('PEXPIRE', KEYS[1], math.ceil(lease * 1000))
local answers = {redis.call('ZCARD', KEYS[1])}

local accounts = {}
local function account(index, held)
  if accounts[index] then return accounts[index] end
  local found = {fields = {}, others = {}, mine = held, horizon = now}
  local kept = redis.pcall('HGETALL', KEYS[index])
  if kept.err then redis.call('DEL', KEYS[index]); kept = {} end
  for at = 1, #kept, 2 do
    local field, text = kept[at], kept[at + 1]
    if string.sub(field, 1, 1) ~= '@' then
      found.fields[field] = number(text)
    elseif field ~= '@' .. router then
      local readable, other = pcall(cjson.decode, text)
      local ends = readable and type(other) == 'table' and number(other.ends)
      if ends and ends > now and ends <= now + 2 * lease and type(other.held) == 'table' then
        found.horizon = math.max(found.horizon, ends)
        for quota, count in pairs(other.held) do
          found.others[quota] = (found.others[quota] or 0) + math.max(0, number(count) or 0)
        end
      else
        redis.call('HDEL', KEYS[index], field)
      end
    end
  end
  accounts[index] = found
  return found
end

for at = 5, #ARGV do
  local ask = cjson.decode(ARGV[at])
  local found = account(ask.account, ask.held)
  local quota, wait = '', 0
  if not ask.forced then
    for _, place in ipairs(ask.places) do
      local count = (found.others[place[1]] or 0) + (found.mine[place[1]] or 0)
      if count >= place[2] and count_retry > wait then quota, wait = place[1], count_retry end
    end
  end
  for _, rate in ipairs(ask.rates) do
    local name, per_s, burst, largest, amount = rate[1], rate[2], rate[3], rate[4], rate[5]
    local full = found.fields[name]
    if not full or full > now + burst / per_s + max_debt + 1 then full = now end
    found.fields[name] = full
    if not ask.forced and amount ~= cjson.null then
      local left = math.huge
      if amount <= largest then left = full - (burst - math.min(amount, burst)) / per_s - now end
      if left > wait then quota, wait = name, left end
    end
  end
  if quota == '' then
    for _, rate in ipairs(ask.rates) do
      local name, per_s, burst, amount = rate[1], rate[2], rate[3], rate[5]
      if amount ~= cjson.null then
        local full = math.max(found.fields[name], now) + amount / per_s
        found.fields[name] = math.min(full, now + burst / per_s + max_debt)
      end
    end
    for _, place in ipairs(ask.places) do found.mine[place[1]] = (found.mine[place[1]] or 0) + 1 end
  end
  local answer = {quota, string.format('%.17g', wait)}
  for _, rate in ipairs(ask.rates) do
    table.insert(answer, string.format('%.17g', math.max(0, found.fields[rate[1]] - now)))
  end
  table.insert(answers, answer)
end

for index, found in pairs(accounts) do
  for field, full in pairs(found.fields) do
    if full > now then
      found.horizon = math.max(found.horizon, full)
      redis.call('HSET', KEYS[index], field, string.format('%.17g', full))
    else
      redis.call('HDEL', KEYS[index], field)
    end
  end
  local holds = false
  for _, count in pairs(found.mine) do holds = holds or count > 0 end
  if holds then
    found.horizon = math.max(found.horizon, now + lease)
    redis.call('HSET', KEYS[index], '@' .. router, cjson.encode({ends = now + lease, held = found.mine}))
  else
    redis.call('HDEL', KEYS[index], '@' .. router)
  end
  redis.call('PEXPIRE', KEYS[index], math.ceil((found.horizon - now) * 1000) + 1000)
end
return answers
"""
"""Lua script that charges accounts, one hash each.

KEYS are the sorted set of living routers (by the time at which they count as gone), then the accounts. ARGV are this
router's id, the time in ms for which its places are kept without a sign of it, the seconds to wait for a place, the
longest debt in seconds, and then one JSON object for each charge:

- `account`: number of its key in KEYS.
- `held`: this router's places of the account by quota, without those that this call gives; read from the first charge
  of an account only.
- `places`: pairs of a count's name and its limit, of which one more is asked for.
- `rates`: name, rate a second, burst, largest amount, and the amount, null where none is taken.
- `forced`: whether it is charged in any case.

An account has a field for each bucket that is not full (the time at which it will be), and one for each router that
holds places. What nothing of ours writes there is taken for absent. The key expires when every bucket is full and every
router's hold has ended, so that an account that expires loses nothing.

The answer is the number of living routers, and for each charge the name of the quota that refuses it (empty: granted),
the seconds to wait, and for each of `rates` the seconds until its bucket is full. Numbers are texts, because Redis cuts
fractions off.
"""
