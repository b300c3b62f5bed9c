-- One step of a shared quota: the code of `_step.py`, `_share.py` and `_calendar.py`, function by function, which is
-- explained there. A test checks that both give the same answers.
--
-- KEYS: the state, a hash of its members, and a sorted set of when each must be handled if it stays silent.
-- ARGV: a verb ("lease", "amend", "look" or "reset"), the time in seconds (empty for the server's own), and its arguments.
local STATE, MEMBERS, DUES = KEYS[1], KEYS[2], KEYS[3]
local EXPIRES = 90000  -- Seconds after the last use: a group that starts warm within a day needs the rate.
local AHEAD, MEMBER_LIFETIME, LEASE_GRACE, WAITING_LIFETIME, SWEEP_INTERVAL, SWEEP_SIZE = 0.25, 10, 2, 1.5, 0.1, 20
local MAX_UNITS_WAIT, LOW_FRACTION, SAME_START, MAX_QUEUE, CLOCK_SET_BACK, USAGE_SPAN = 0.1, 0.1, 1, 60, 0.1, 10
local NEVER, ROUNDING, SAME_INSTANT, LATE, MAX_EXACT = -1e18, 1e-6, 1e-6, 0.05, 64
local min, max, floor, ceil, insert = math.min, math.max, math.floor, math.ceil, table.insert

-- Ranges of places: {first, gap, places}.
local function count(ranges)
  local number = 0
  for _, r in ipairs(ranges) do number = number + r[3] end
  return number
end

local function last(ranges)
  local found = NEVER
  for _, r in ipairs(ranges) do found = max(found, r[1] + r[2] * (r[3] - 1)) end
  return found
end

local function past(first, gap, places, now)
  if first > now then return 0 end
  return gap > 0 and min(places, floor((now - first) / gap + ROUNDING) + 1) or places
end

local function cut(ranges, places)
  local head, tail = {}, {}
  for _, r in ipairs(ranges) do
    local taken = min(places, r[3])
    places = places - taken
    if taken > 0 then insert(head, {r[1], r[2], taken}) end
    if r[3] > taken then insert(tail, {r[1] + taken * r[2], r[2], r[3] - taken}) end
  end
  return head, tail
end

local function in_order(a, b)
  for k = 1, #a do
    if a[k] ~= b[k] then return a[k] < b[k] end
  end
  return false
end

local function merged(some, others)
  if #some == 0 then return others elseif #others == 0 then return some end
  local ranges, single = {}, {}
  for _, r in ipairs(some) do insert(ranges, r) end
  for _, r in ipairs(others) do insert(ranges, r) end
  table.sort(ranges, in_order)
  for k = 1, #ranges - 1 do
    local left = ranges[k]
    if left[1] + left[2] * (left[3] - 1) > ranges[k + 1][1] then
      for _, r in ipairs(ranges) do
        for number = 0, r[3] - 1 do insert(single, {r[1] + r[2] * number, 0, 1}) end
      end
      table.sort(single, in_order)
      return single
    end
  end
  return ranges
end

-- The window.
local function margin(s) return min(LATE, s.window_seconds / 300) end

local function length(s) return s.window_seconds + margin(s) end

local function within(s)
  local places = 0
  for _, entry in ipairs(s.window) do places = places + entry[2] end
  return places
end

local function opening(s)
  local surplus = within(s) - s.most
  if s.most == 0 or surplus < 0 then return NEVER end
  for _, entry in ipairs(s.window) do
    surplus = surplus - entry[2]
    if surplus < 0 then return entry[1] + length(s) end
  end
  return NEVER
end

local function entry_for(s, first, gap, places)
  if s.most <= MAX_EXACT then return first, gap > 0 and 1 or places end
  local width = s.window_seconds / MAX_EXACT
  local instant = ceil(first / width) * width
  return instant, max(1, past(first, gap, places, instant))
end

local function add_to_window(s, first, gap, places)
  while s.most > 0 and places > 0 do
    local instant, together = entry_for(s, first, gap, places)
    local index = #s.window
    while index > 0 and s.window[index][1] > instant + SAME_INSTANT do index = index - 1 end
    if index > 0 and s.window[index][1] > instant - SAME_INSTANT then
      s.window[index][2] = s.window[index][2] + together
    else
      insert(s.window, index + 1, {instant, together})
    end
    first, places = first + together * gap, places - together
  end
end

local function add_past_to_window(s, seconds, places, now)
  local first, gap = now - seconds, seconds / places
  local over = past(first, gap, places, now - length(s) - s.window_seconds / MAX_EXACT)
  add_to_window(s, first + over * gap, gap, places - over)
end

local function remove_from_window(s, first, gap, places)
  while s.most > 0 and places > 0 do
    local instant, together = entry_for(s, first, gap, places)
    first, places = first + together * gap, places - together
    for index = #s.window, 1, -1 do
      local entry = s.window[index]
      if together > 0 and entry[1] <= instant + SAME_INSTANT then
        local taken = min(entry[2], together)
        entry[2], together = entry[2] - taken, together - taken
        if entry[2] == 0 then table.remove(s.window, index) end
      end
    end
  end
end

local function note_delay(s, ranges, seconds)
  if seconds <= margin(s) then return end
  for _, r in ipairs(ranges) do
    remove_from_window(s, r[1], r[2], r[3])
    add_to_window(s, r[1] + seconds, r[2], r[3])
  end
end

local function fit(s, first, gap, places)
  if s.most == 0 or within(s) + places <= s.most then return places end
  local seconds = length(s)
  if gap > 0 and #s.window > 0 and s.window[#s.window][1] > first + SAME_INSTANT then places = 1 end
  local near, all, inside, left = {}, 0, 0, 1
  for _, entry in ipairs(s.window) do
    if entry[1] > first - seconds + SAME_INSTANT then
      insert(near, entry)
      all = all + entry[2]
      if entry[1] <= first + SAME_INSTANT then inside = inside + entry[2] end
    end
  end
  if s.most > MAX_EXACT then return min(places, s.most - all) end
  local most = inside
  for _, entry in ipairs(near) do
    if first + SAME_INSTANT < entry[1] and entry[1] < first + seconds - SAME_INSTANT then
      inside = inside + entry[2]
      while near[left][1] <= entry[1] - seconds + SAME_INSTANT do
        inside = inside - near[left][2]
        left = left + 1
      end
      most = max(most, inside)
    end
  end
  return min(places, s.most - most)
end

-- The calendar.
local function give(s, places)
  s.credit = s.credit + min(places, max(0, max(1, s.burst - 1) - s.credit))
end

local function offer(s, ranges, now)
  for _, r in ipairs(ranges) do
    local passed = past(r[1], r[2], r[3], now)
    give(s, passed)
    if r[3] > passed then insert(s.free, {r[1] + passed * r[2], r[2], r[3] - passed}) end
  end
  table.sort(s.free, in_order)
end

local function advance(s, now)
  local at = now + s.offset
  if at < s.at then
    if at < s.at - CLOCK_SET_BACK then s.offset = s.at - now end
    at = s.at
  end
  local seconds = at - s.at
  s.at, s.usage = at, s.usage * max(0, 1 - seconds / USAGE_SPAN)
  if s.max_cost > 0 then s.units = min(s.max_cost - s.units_held, s.units + seconds * s.cost_rate) end
  if #s.free > 0 and s.free[1][1] <= at then
    local ranges = s.free
    s.free = {}
    offer(s, ranges, at)
  end
  if s.next < at then
    s.credit = s.credit + min((at - s.next) * s.rate, max(0, s.burst - 1 - s.credit))
    s.next = at
  end
  local since, window = at - length(s), {}
  if #s.window > 0 and s.window[1][1] <= since then
    for _, entry in ipairs(s.window) do
      if entry[1] > since then insert(window, entry) end
    end
    s.window = window
  end
  return at
end

local function release(s, ranges, now)
  for _, r in ipairs(ranges) do
    s.returned = s.returned + r[3]
    remove_from_window(s, r[1], r[2], r[3])
  end
  offer(s, ranges, now)
end

local function spare(s, now)
  if s.credit < 1 - ROUNDING or s.paused > now then return 0 end
  return fit(s, now, 0, floor(s.credit + ROUNDING))
end

local function allocate(s, places, now)
  local gap, opens = 1 / s.rate, opening(s)
  if opens > s.next then
    local surplus = max(0, (opens - s.next) * s.rate + s.credit - max(0, s.burst - 1))
    s.next = min(opens, s.next + surplus * gap)
  end
  local is_spare = spare(s, now) > 0
  if not is_spare then
    for index, r in ipairs(s.free) do
      if r[1] + r[2] * (r[3] - 1) < max(s.next, opens) + gap then
        local found = fit(s, r[1], r[2], min(places, r[3]))
        if found > 0 then
          local _, tail = cut({r}, found)
          table.remove(s.free, index)
          for _, rest in ipairs(tail) do insert(s.free, rest) end
          table.sort(s.free, in_order)
          return r[1], r[2], found
        end
      end
    end
  end
  if s.credit >= 1 - ROUNDING and s.paused <= now then
    local first = is_spare and now or opens
    local found = max(1, fit(s, first, 0, min(places, floor(s.credit + ROUNDING))))
    s.credit = s.credit - found
    return first, 0, found
  end
  local start, first, step = s.next, s.next, gap
  if first < opens then
    first, step, places = opens, 0, past(first, gap, places, opens)
  end
  places = max(1, fit(s, first, step, places))
  s.next = start + places * gap
  return first, step, places
end

-- The stored state and its members.
local function precise(number) return string.format("%.17g", number) end

local function unpacked(text)
  local good, found = pcall(cmsgpack.unpack, text or "")
  return good and type(found) == "table" and found.id and found or nil
end

local function fresh_state(now, epoch)
  epoch = max(epoch, floor(now * 1e6))
  return {
    offset = -now, epoch = epoch, version = epoch, id = epoch, memory = "", written = 0, at = 0, began = NEVER, started = 0,
    owner_seen = NEVER, rate = 0, burst = 0, quota_rate = 0, quota_burst = 0, window_seconds = 0, max_cost = 0, cost_rate = 0,
    methods = "", next = 0, free = {}, credit = 0, most = 0, window = {}, units = 0, units_held = 0, paused = NEVER,
    refused = NEVER, low_next = NEVER, active = 0, normal = 0, sweep_at = 0, leased = 0, used = 0, returned = 0, expired = 0,
    usage = 0, is_new = true,
  }
end

local function fresh_member(ask, epoch)
  return {
    due = 0, id = 0, before = 0, epoch = epoch, used = ask.used, lapsed = ask.lapsed, units = 0,
    units_used = ask.units_used - ask.units_new,
    units_fresh = 0, waiting = 0, own = 0, seq = 0, seen = 0, counted = 0, normal = 0, old = {}, fresh = {},
  }
end

local function save(s)
  local seconds = string.format("%d", EXPIRES + max(0, min(1e8, max(s.paused, s.next) - s.at)))
  redis.call("SET", STATE, cmsgpack.pack(s), "EX", seconds)
  redis.call("EXPIRE", MEMBERS, seconds)
  redis.call("EXPIRE", DUES, seconds)
end

local function save_member(name, m)
  redis.call("HSET", MEMBERS, name, cmsgpack.pack(m))
  redis.call("ZADD", DUES, precise(m.due), name)
end

local function delete_member(name)
  redis.call("HDEL", MEMBERS, name)
  redis.call("ZREM", DUES, name)
end

-- The members.
local function due(m)
  local held = count(m.old) + count(m.fresh)
  if held > 0 then
    local is_served = m.counted == 1 and m.waiting <= held
    return min(m.seen + MEMBER_LIFETIME, max(last(m.old), last(m.fresh)) + (is_served and LATE or LEASE_GRACE))
  end
  return m.seen + (m.counted == 1 and WAITING_LIFETIME or MEMBER_LIFETIME)
end

-- All members but this one, by value: users need not allow HGETALL. Equal values are interchangeable.
local function others(name)
  local found, own = {}, redis.call("HGET", MEMBERS, name)
  for _, text in ipairs(redis.call("HVALS", MEMBERS)) do
    local other = text ~= own and unpacked(text)
    if other then insert(found, other) end
    if text == own then own = nil end
  end
  return found
end

local function void_old(s, m)
  if m.epoch == s.epoch then return false end
  m.old, m.fresh, m.id, m.before, m.epoch = {}, {}, -1, -1, s.epoch
  return true
end

local function void(s, now)
  s.expired, s.epoch = s.leased - s.used - s.returned, s.epoch + 1
  s.next, s.free = max(now, s.paused), {}
  while #s.window > 0 and s.window[#s.window][1] > now do table.remove(s.window) end
end

local function reconcile(s, m, ask, now)
  void_old(s, m)
  local used, lapsed, spent = ask.used - m.used, ask.lapsed - m.lapsed, ask.units_used - m.units_used
  m.used, m.lapsed, m.units_used = ask.used, ask.lapsed, ask.units_used
  if ask.lease_id ~= m.id then
    release(s, m.fresh, now)
    m.fresh = {}
  end
  local known = ask.lease_id == m.id or ask.lease_id == m.before
  local keeps = known and not ask.leaving
  local ranges = merged(m.old, m.fresh)
  local held = keeps and min(ask.held, count(ranges)) or 0
  local front, rest = cut(ranges, max(0, used + lapsed))
  local ended = count(front)
  local unused = ended - min(used, ended)
  s.used, s.usage = s.used + ended - unused, s.usage + max(0, ended - unused)
  if unused > 0 then
    s.returned = s.returned + unused
    give(s, #front > 0 and min(unused, max(0, lapsed)) or max(0, -used))
    local early = cut(front, unused)
    insert(early, {s.at, 0, unused - ended})
    for _, r in ipairs(early) do remove_from_window(s, min(r[1], s.at - ask.unsent), r[2], r[3]) end
  end
  local _, late = cut(front, unused)
  note_delay(s, late, ask.delay)
  local kept, tail = cut(rest, held)
  release(s, tail, now)
  local units = keeps and ask.units or 0
  local returned = m.units + m.units_fresh - units
  s.units_held = s.units_held - returned
  s.units = s.max_cost > 0 and min(s.max_cost - s.units_held, s.units + returned - spent) or 0
  m.old, m.fresh, m.units, m.units_fresh = kept, {}, units, 0
  return not known
end

local function uncount(s, m)
  s.active, s.normal = s.active - m.counted, s.normal - m.normal
  m.counted, m.normal = 0, 0
end

local function note_presence(s, m, ask, now)
  m.seen, m.waiting = now, ask.waiting
  uncount(s, m)
  m.counted = (ask.want > 0 or ask.waiting > 0 or #m.old > 0) and 1 or 0
  m.normal = ask.waiting > 0 and not ask.low and 1 or 0
  s.active, s.normal = s.active + m.counted, s.normal + m.normal
end

local function normal_until(s, but)
  local till = NEVER
  for _, m in ipairs(others(but)) do
    if m.normal == 1 then
      local held = m.epoch == s.epoch and count(m.old) + count(m.fresh) or 0
      till = max(till, m.waiting > held and m.seen + WAITING_LIFETIME or max(last(m.old), last(m.fresh)) + LATE)
    end
  end
  return till
end

local function take_away(s, m, now)
  local units = m.units + m.units_fresh
  s.units_held = s.units_held - units
  if m.epoch == s.epoch then
    local ranges, passed = merged(m.old, m.fresh), 0
    for _, r in ipairs(ranges) do passed = passed + past(r[1], r[2], r[3], now) end
    s.expired = s.expired + passed
    local _, later = cut(ranges, passed)
    release(s, later, now)
    if passed == 0 then s.units = s.units + units end
  end
  m.old, m.fresh, m.units, m.units_fresh = {}, {}, 0, 0
end

local function sweep(s, now)
  if now < s.sweep_at then return end
  local known = redis.call("HLEN", MEMBERS)
  if redis.call("ZCOUNT", DUES, "-inf", "+inf") ~= known or s.is_new and known > 0 then  -- The server evicted a key.
    redis.call("DEL", MEMBERS, DUES)
    s.active, s.normal, s.units_held = 0, 0, 0
  end
  local names = redis.call("ZRANGEBYSCORE", DUES, "-inf", precise(now), "LIMIT", 0, SWEEP_SIZE)
  s.sweep_at = #names == SWEEP_SIZE and now or now + SWEEP_INTERVAL
  for _, name in ipairs(names) do
    local m = unpacked(redis.call("HGET", MEMBERS, name))
    if m then
      uncount(s, m)
      m.waiting, m.due = 0, due(m)
      if m.due <= now then
        take_away(s, m, now)
        m.due = m.seen + MEMBER_LIFETIME
      end
    end
    if m and m.due > now then save_member(name, m) else delete_member(name) end
  end
end

-- Units of cost.
local function reserved(s, m, name, now)
  local firsts, lasts = {}, {}
  local function add(ranges, units, is_void)
    if units <= 0 then return end
    if is_void then ranges = {} end
    insert(firsts, {max(now, #ranges > 0 and ranges[1][1] or now), units})
    insert(lasts, {max(now, last(ranges)), units})
  end
  local function add_both(other)
    add(other.old, other.units, other.epoch ~= s.epoch)
    add(other.fresh, other.units_fresh, other.epoch ~= s.epoch)
  end
  for _, other in ipairs(others(name)) do add_both(other) end
  add_both(m)
  table.sort(firsts, in_order)
  table.sort(lasts, in_order)
  return firsts, lasts
end

local function later(s, level, seconds) return min(s.max_cost, level + seconds * s.cost_rate) end

local function can_pay(s, level, at, held, number)
  for k = number, #held do
    level, at = later(s, level, held[k][1] - at), held[k][1]
    if level < min(held[k][2], s.max_cost) - ROUNDING * s.max_cost then return false end
    level = level - held[k][2]
  end
  return true
end

local function earliest(s, held, cost, now, since)
  local level, at, need = s.units + s.units_held, now, min(cost, s.max_cost)
  for number, use in ipairs(held) do
    local start = max(since, at + max(0, need - level) / s.cost_rate)
    if start <= use[1] and can_pay(s, later(s, level, start - at) - cost, start, held, number) then return start end
    level, at = later(s, level, use[1] - at) - use[2], use[1]
  end
  return max(since, at + max(0, need - level) / s.cost_rate)
end

local function payment(s, m, name, cost, now, since)
  local firsts, lasts = reserved(s, m, name, now)
  while true do
    local first = earliest(s, firsts, cost, now, since)
    local start = earliest(s, lasts, cost, now, first)
    if start <= first then return start end
    since = start
  end
end

-- The step.
local function set_rate(s, rate, burst, now)
  local start = max(now, s.paused)
  if s.next > start and s.rate > 0 then s.next = start + (s.next - start) * s.rate / rate end
  s.rate, s.burst, s.credit = rate, burst, min(s.credit, burst)
end

local function agree(s, ask, now)
  local began = now - ask.age
  local younger = began - s.began
  local same = ask.rate == s.quota_rate and ask.burst == s.quota_burst and ask.window == s.window_seconds
    and ask.max_cost == s.max_cost and ask.cost_rate == s.cost_rate and ask.methods == s.methods
  if younger > SAME_START or younger > -SAME_START and ask.started > s.started or s.owner_seen <= now - MEMBER_LIFETIME then
    if not same then
      if s.window_seconds > 0 and not s.is_new then void(s, now) end
      if ask.max_cost > 0 and s.max_cost == 0 then
        s.units = s.is_new and ask.lease_id ~= 0 and 0 or ask.max_cost
      end
      s.quota_rate, s.quota_burst, s.window_seconds = ask.rate, ask.burst, ask.window
      s.max_cost, s.cost_rate, s.methods = ask.max_cost, ask.cost_rate, ask.methods
      s.units, s.most = min(s.units, ask.max_cost - s.units_held), floor(ask.rate * ask.window + ROUNDING)
      s.version, s.memory = s.version + 1, ""
      set_rate(s, ask.rate, ask.burst, now)
    end
    s.began, s.started, s.owner_seen = began, ask.started, now
  elseif same then
    s.owner_seen = now
  end
end

local function refuse(s, epoch, till, now)
  if epoch ~= s.epoch and till <= s.paused then return end
  s.refused, s.paused = now, max(s.paused, till)
  s.next = max(s.next, s.paused)
  if epoch == s.epoch then
    void(s, now)
    s.credit = 0
  end
end

local function affordable(s, costs, from, to)
  local left = s.units
  for number = from, to do
    local cost = costs[number]
    if cost > 0 and left < min(cost, s.max_cost) - ROUNDING * s.max_cost then return number - from end
    left = left - cost
  end
  return to - from + 1
end

local function grant(s, m, ask, now)
  local portion = max(1, floor(max(s.rate * AHEAD, s.credit) / max(1, s.active) + ROUNDING))
  local held = 0
  for _, r in ipairs(m.old) do held = held + r[3] - past(r[1], r[2], r[3], now) end
  local want = min(ask.want, portion + 1 - held)
  if max(s.next, opening(s)) - now > 1.5 * AHEAD then want = min(want, 1) end
  local till = ask.low and s.normal > m.normal and normal_until(s, ask.member) or now
  if till > now then
    if s.low_next > now then return min(s.low_next, till) - now end
    want = min(want, 1)
    s.low_next = max(s.low_next, now - 1 / (LOW_FRACTION * s.rate)) + 1 / (LOW_FRACTION * s.rate)
  end
  local costs, granted = s.max_cost > 0 and ask.costs or {}, 0
  while granted < want do
    local places, final, paid_at = want - granted, max(last(m.old), last(m.fresh)), now
    if #costs > 0 then
      if final - now > 1.5 * AHEAD then return 0 end
      places = affordable(s, costs, granted + 1, want)
      if places == 0 then paid_at = payment(s, m, ask.member, costs[granted + 1], now, NEVER) end
      if paid_at - now > MAX_UNITS_WAIT and (granted > 0 or #m.old > 0) then
        return granted > 0 and 0 or paid_at - now - MAX_UNITS_WAIT / 2
      end
    end
    local first, gap, found = allocate(s, max(1, places), now)
    if #costs > 0 then
      first = max(first, final, paid_at)
      if places == 0 and first > paid_at then first = payment(s, m, ask.member, costs[granted + 1], now, first) end
    end
    local paid = 0
    for number = granted + 1, min(granted + found, #costs) do paid = paid + costs[number] end
    s.units, s.units_held, m.units_fresh = s.units - paid, s.units_held + paid, m.units_fresh + paid
    m.fresh = merged(m.fresh, {{first, gap, found}})
    s.leased, granted = s.leased + found, granted + found
    add_to_window(s, first, gap, found)
  end
  return 0
end

local function queue(s, now)
  local left = spare(s, now)
  if left > 0 then return -left / s.rate end
  local later = max(s.next, s.paused, opening(s))
  for _, r in ipairs(s.free) do
    if fit(s, r[1], r[2], 1) > 0 then return max(s.paused, min(later, r[1])) - now end
  end
  return later - now
end

local function answer(s, m, now, is_void, again, ranges)
  local words = {m.id, #ranges > 0 and m.units_fresh or 0, is_void and 1 or 0, queue(s, now), again, max(0, s.paused - now),
    s.epoch, max(1, s.active), redis.call("HLEN", MEMBERS), s.rate, s.burst, s.version, now - s.written, s.quota_rate, s.quota_burst,
    s.window_seconds, s.max_cost, s.cost_rate, s.units}
  for _, r in ipairs(ranges) do
    insert(words, r[1] - now)
    insert(words, r[2])
    insert(words, r[3])
  end
  for index, word in ipairs(words) do words[index] = precise(word) end
  return {table.concat(words, " "), s.memory, s.methods}
end

local function step(s, ask, now)
  now = advance(s, now)
  sweep(s, now)
  local m = unpacked(redis.call("HGET", MEMBERS, ask.member))
  if not m then
    m = fresh_member(ask, s.epoch)
  elseif ask.seq > 0 and ask.seq <= m.seq then
    return answer(s, m, now, true, 0, {})
  end
  local own = ask.lease_id == m.id and ask.own or max(0, ask.own - m.own)
  if own > 0 then
    s.leased, s.used, s.credit = s.leased + own, s.used + own, max(0, s.credit - own)
    add_past_to_window(s, ask.own_seconds, own, now)
  end
  m.seq, m.own = ask.seq, ask.own
  agree(s, ask, now)
  if s.is_new then
    s.is_new = false
    if ask.lease_id ~= 0 then s.next = max(s.next, now + min(ask.queue, MAX_QUEUE)) end
  end
  local is_void = reconcile(s, m, ask, now)
  note_presence(s, m, ask, now)
  if ask.refused ~= cjson.null then
    refuse(s, ask.refused[1], now + ask.refused[2], now)
    is_void = void_old(s, m) or is_void
  end
  local again = ask.want > 0 and not ask.leaving and grant(s, m, ask, now) or 0
  s.id = s.id + 1
  m.before, m.id = is_void and -1 or ask.lease_id, s.id
  m.due = due(m)
  save_member(ask.member, m)
  local lease = answer(s, m, now, is_void, again, m.fresh)
  if ask.leaving then
    uncount(s, m)
    delete_member(ask.member)
  end
  return lease
end

-- For display. Advances a copy of the state and writes nothing, so that a replica can answer.
local function look(s, now)
  local alive, active, waiting = 0, 0, 0
  now = advance(s, now)
  for _, text in ipairs(redis.call("HVALS", MEMBERS)) do
    local m = unpacked(text)
    if m and m.seen > now - MEMBER_LIFETIME then
      alive, waiting = alive + 1, waiting + m.waiting
      if #m.old > 0 or #m.fresh > 0 or m.waiting > 0 then active = active + 1 end
    end
  end
  local debt = s.cost_rate > 0 and max(0, -s.units / s.cost_rate) or 0
  return cjson.encode{
    members = alive, active = active, waiting = waiting, rate = s.rate, used = s.usage / USAGE_SPAN, units = s.units,
    queue = max(0, queue(s, now), debt), pause = max(0, s.paused - now), epoch = precise(s.epoch),
    refused = s.refused > NEVER and now - s.refused or cjson.null,
    quota = {rate = s.quota_rate, burst = s.quota_burst, window = s.window_seconds, max_cost = s.max_cost,
      cost_rate = s.cost_rate, methods = s.methods},
    books = {leased = s.leased, used = s.used, returned = s.returned, expired = s.expired,
      held = s.leased - s.used - s.returned - s.expired},
  }
end

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call("TIME")
  now = time[1] + time[2] / 1e6
end
if ARGV[1] == "reset" and redis.call("TYPE", STATE).ok ~= "string" then
  return redis.call("DEL", STATE, MEMBERS, DUES)
end
local s = unpacked(redis.call("GET", STATE))

if ARGV[1] == "lease" then
  local ask = cjson.decode(ARGV[3])
  s = s or fresh_state(now, 0)
  if ask.lease_id > s.id and s.rate > 0 then  -- An older state was restored: the members know more.
    redis.call("DEL", MEMBERS, DUES)
    s = fresh_state(now, max(s.epoch, ask.lease_id) + 1)
  end
  local lease = step(s, ask, now)
  save(s)
  return lease
elseif ARGV[1] == "amend" then
  local law = cjson.decode(ARGV[3])
  if not s or law.epoch ~= s.epoch or law.version ~= s.version then return 0 end
  now = advance(s, now)
  set_rate(s, law.rate, law.burst, now)
  s.version, s.memory, s.written = s.version + 1, law.memory, now
  save(s)
  return 1
elseif not s or s.rate == 0 then
  return ARGV[1] == "look" and "" or redis.call("DEL", MEMBERS, DUES)  -- Perhaps of another type.
elseif ARGV[1] == "look" then
  return look(s, now)
end
s = fresh_state(now, s.epoch + 1)
s.is_new = false
redis.call("DEL", MEMBERS, DUES)
save(s)
return 1
